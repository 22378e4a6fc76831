/**
 * The manifests of a worker, as TypeScript: a misspelt field or a wrong type is a compile error. `npm run generate` writes them as
 * YAML files beside this one; without this repository, run `node manifests.ts`.
 */
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject"
import { TriggerAuthentication } from "@kubernetes-models/keda/keda.sh/v1alpha1/TriggerAuthentication"
import { PodMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor"
import { Deployment } from "kubernetes-models/apps/v1/Deployment"
import { HorizontalPodAutoscaler } from "kubernetes-models/autoscaling/v2/HorizontalPodAutoscaler"
import { Job } from "kubernetes-models/batch/v1/Job"
import { PodDisruptionBudget } from "kubernetes-models/policy/v1/PodDisruptionBudget"
import { writeFileSync } from "node:fs"
import { stringify } from "yaml"

const name = "projection-worker"
const image = "registry.example.org/projection-worker:1.0.0"
const replicaSet = "orders"
const secret = "postgres-credentials"
const labels = { "app.kubernetes.io/name": name }
const port = 9090

/** How long a worker may take to end, in seconds. README.md explains the relation. */
export const ending = {
  /** For an event in its handler (`drainTimeout`). */
  drain: 10,
  /** For releasing the ranges and unregistering: the library's limit. */
  leave: 5,
  /** After this time, the kubelet sends SIGKILL. */
  grace: 30
}

const databaseUrl = (key: string) => ({ name: "DATABASE_URL", valueFrom: { secretKeyRef: { name: secret, key } } })

const podSecurity = { runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } } as const
const containerSecurity = {
  allowPrivilegeEscalation: false,
  readOnlyRootFilesystem: true,
  capabilities: { drop: ["ALL"] }
}

const probe = (path: string) => ({ httpGet: { path, port: "metrics" }, timeoutSeconds: 5 })

const deployment = new Deployment({
  metadata: { name, labels },
  spec: {
    replicas: 3,
    selector: { matchLabels: labels },
    // One additional pod at a time, which must be ready before an old one ends.
    strategy: { type: "RollingUpdate", rollingUpdate: { maxSurge: 1, maxUnavailable: 0 } },
    template: {
      metadata: { labels },
      spec: {
        automountServiceAccountToken: false,
        securityContext: podSecurity,
        terminationGracePeriodSeconds: ending.grace,
        containers: [{
          name: "worker",
          image,
          securityContext: containerSecurity,
          env: [
            databaseUrl("url"),
            { name: "ORCHESTRATOR_REPLICA_SET", value: replicaSet },
            { name: "ORCHESTRATOR_WORKER_ID", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } },
            { name: "ORCHESTRATOR_DRAIN_TIMEOUT", value: `${ending.drain}s` },
            // The Job does that.
            { name: "RUN_MIGRATIONS", value: "false" }
          ],
          ports: [{ name: "metrics", containerPort: port }],
          startupProbe: { ...probe("/healthz"), periodSeconds: 2, failureThreshold: 30 },
          livenessProbe: { ...probe("/healthz"), periodSeconds: 10, failureThreshold: 6 },
          readinessProbe: { ...probe("/readyz"), periodSeconds: 5, failureThreshold: 2 },
          resources: { requests: { cpu: "100m", memory: "256Mi" }, limits: { memory: "512Mi" } }
        }]
      }
    }
  }
})

const disruptionBudget = new PodDisruptionBudget({
  metadata: { name, labels },
  // A pod that is not ready, for example because its ranges are halted, does not keep a node from being drained.
  spec: { maxUnavailable: 1, unhealthyPodEvictionPolicy: "AlwaysAllow", selector: { matchLabels: labels } }
})

/** The command of the Job, in the folder of the image. Without `npx`, the command is process 1 and receives signals. */
export const migrateCommand = ["node", "node_modules/pupsourcing-orchestrator/dist/cli/main.js", "migrate", "up"]

const migrations = new Job({
  metadata: { name: `${name}-migrate`, labels: { "app.kubernetes.io/name": `${name}-migrate` } },
  spec: {
    backoffLimit: 4,
    ttlSecondsAfterFinished: 86_400,
    template: {
      metadata: { labels: { "app.kubernetes.io/name": `${name}-migrate` } },
      spec: {
        restartPolicy: "Never",
        automountServiceAccountToken: false,
        securityContext: podSecurity,
        containers: [{
          name: "migrate",
          image,
          command: migrateCommand,
          securityContext: containerSecurity,
          env: [databaseUrl("migrator-url")],
          resources: { requests: { cpu: "100m", memory: "128Mi" }, limits: { memory: "256Mi" } }
        }]
      }
    }
  }
})

const podMonitor = new PodMonitor({
  metadata: { name, labels },
  spec: {
    selector: { matchLabels: labels },
    podMetricsEndpoints: [{ port: "metrics", path: "/metrics", interval: "15s" }]
  }
})

/** One pod a minute up, one pod each three minutes down, and both only for a load that lasts. */
const behavior = {
  scaleUp: { stabilizationWindowSeconds: 300, policies: [{ type: "Pods", value: 1, periodSeconds: 60 }] },
  scaleDown: { stabilizationWindowSeconds: 600, policies: [{ type: "Pods", value: 1, periodSeconds: 180 }] }
}

const autoscaler = new HorizontalPodAutoscaler({
  metadata: { name, labels },
  spec: {
    scaleTargetRef: { apiVersion: "apps/v1", kind: "Deployment", name },
    minReplicas: 2,
    maxReplicas: 10,
    metrics: [{ type: "Resource", resource: { name: "cpu", target: { type: "Utilization", averageUtilization: 70 } } }],
    behavior
  }
})

/**
 * The events that a replica set has not handled yet: of the positions after a range's position, the range's share of the hash space. It
 * reads one row for each range and the end of an index. A halted range does not count, because another worker would halt there, too.
 */
export const lagQuery = `
SELECT coalesce(ceil(sum(
  greatest(head.position - c.position, 0) * (c.range_end - c.range_start) / 4294967296.0
)), 0)::bigint
FROM orchestrator_checkpoints AS c,
  (SELECT coalesce(max(global_position), 0) AS position FROM events) AS head
WHERE c.replica_set = '${replicaSet}' AND c.halted_since IS NULL
`.trim()

const authentication = new TriggerAuthentication({
  metadata: { name: `${name}-lag`, labels },
  spec: { secretTargetRef: [{ parameter: "connection", name: secret, key: "status-url" }] }
})

const scaledObject = new ScaledObject({
  metadata: { name, labels },
  spec: {
    scaleTargetRef: { name },
    minReplicaCount: 2,
    maxReplicaCount: 10,
    pollingInterval: 30,
    triggers: [{
      type: "postgresql",
      // KEDA adds a worker for each 5,000 events.
      metadata: { query: lagQuery, targetQueryValue: "5000" },
      authenticationRef: { name: `${name}-lag` }
    }],
    // While the query fails, three workers.
    fallback: { failureThreshold: 3, replicas: 3 },
    advanced: {
      horizontalPodAutoscalerConfig: {
        behavior: { ...behavior, scaleUp: { ...behavior.scaleUp, stabilizationWindowSeconds: 60 } }
      }
    }
  }
})

interface Manifest {
  readonly toJSON: () => unknown
  readonly validate: () => void
}

/** The resources of each file, in the order in which they are applied. */
export const files: Readonly<Record<string, ReadonlyArray<Manifest>>> = {
  "migrate.yaml": [migrations],
  "worker.yaml": [deployment, disruptionBudget],
  "monitoring.yaml": [podMonitor],
  "hpa.yaml": [autoscaler],
  "keda.yaml": [authentication, scaledObject]
}

/** The text of each file. Values that the schema of Kubernetes does not allow throw. */
export const render = (): Readonly<Record<string, string>> =>
  Object.fromEntries(
    Object.entries(files).map(([file, manifests]) => [
      file,
      `# Generated from manifests.ts.\n${
        manifests.map((manifest) => {
          manifest.validate()
          return stringify(manifest.toJSON(), { aliasDuplicateObjects: false, lineWidth: 0 })
        }).join("---\n")
      }`
    ])
  )

if (import.meta.main) {
  for (const [file, text] of Object.entries(render())) writeFileSync(new URL(file, import.meta.url), text)
}
