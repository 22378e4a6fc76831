/** Manifests that must not compile: checked by `tsc`, never run. */
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject"
import { PodMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor"
import { PodDisruptionBudget } from "kubernetes-models/policy/v1/PodDisruptionBudget"

export const manifests = [
  new PodDisruptionBudget({ spec: { maxUnavailable: 1 } }),
  // @ts-expect-error misspelt
  new PodDisruptionBudget({ spec: { maxUnavailble: 1 } }),
  new ScaledObject({ spec: { scaleTargetRef: { name: "worker" }, triggers: [] } }),
  // @ts-expect-error misspelt
  new ScaledObject({ spec: { scaleTargetRef: { name: "worker" }, triggers: [], minReplicas: 2 } }),
  new PodMonitor({ spec: { selector: {}, podMetricsEndpoints: [{ port: "metrics" }] } }),
  // @ts-expect-error wrong type
  new PodMonitor({ spec: { selector: {}, podMetricsEndpoints: [{ port: 9090 }] } })
]
