/**
 * The annotations of every log line of a worker. All fibers of a run share one record, so every line has the generation
 * from the moment when it is known. The lines of a range's runner also have `projection` and `range`.
 */
import * as Effect from "effect/Effect"
import * as References from "effect/References"

export interface LogAnnotations {
  readonly replica_set: string
  readonly worker: string
  /** Missing before the first generation of a registration. */
  generation?: string
}

/** Runs `self` with annotations for all that it logs, in addition to those of the caller. */
export const annotate = <A, E, R>(
  worker: { readonly replicaSet: string; readonly workerId: string },
  self: (annotations: LogAnnotations) => Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  Effect.flatMap(References.CurrentLogAnnotations, (outer) => {
    const annotations = { ...outer, replica_set: worker.replicaSet, worker: worker.workerId }
    return Effect.provideService(self(annotations), References.CurrentLogAnnotations, annotations)
  })

/** Changes the generation of all lines that follow; undefined until a new registration has one. */
export const setGeneration = (annotations: LogAnnotations | undefined, generationId: bigint | undefined): void => {
  if (annotations === undefined) return
  if (generationId === undefined) delete annotations.generation
  else annotations.generation = String(generationId)
}
