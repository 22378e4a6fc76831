/** The panels of a Grafana dashboard, and their queries. */
import type { Dashboard, Panel } from "@grafana/grafana-foundation-sdk/dashboard"

export interface QueriedPanel extends Panel {
  readonly queries: ReadonlyArray<string>
}

/** Every panel that shows data. */
export const panels = (dashboard: Dashboard): ReadonlyArray<QueriedPanel> =>
  (dashboard.panels ?? []).filter((panel) => panel.type !== "row").map((panel) => ({
    ...panel as Panel,
    queries: ((panel as Panel).targets ?? []).map((target) => (target as { readonly expr?: string }).expr ?? "")
  }))

/** Replaces the variables as Grafana does when all replica sets are selected. */
export const fillIn = (query: string, rateInterval: string): string =>
  query.replaceAll("$__rate_interval", rateInterval).replaceAll("$replica_set", ".*")
