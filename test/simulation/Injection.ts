/** Injects the faults of a scenario. */
import type { HaltRequest } from "../../src/schema/ParkedEvent.ts"
import type { Checkers } from "./Checkers.ts"
import type { Fleet } from "./Fleet.ts"
import type { Fault } from "./Scenario.ts"

const place = <A>(items: ReadonlyArray<A>, at: number): A | undefined => items[Math.floor(at * items.length)]

/**
 * Makes the request for each event at which a range is halted, sometimes for an unknown event instead. Returns whether any
 * range is halted.
 */
const requestAboutHalts = <R>(
  { environment, names, run }: Fleet<R>,
  checkers: Checkers,
  { strikes }: Fault,
  request: HaltRequest
): boolean => {
  const halted = names.flatMap((name) => checkers.rowsOf(name)).filter(({ halt }) => halt !== undefined)
  for (const { halt, projection } of halted) {
    if (strikes % 4 === 0) {
      environment.requestOnHalt(projection, unknownEvent, request)
      continue
    }
    if (request === "skip") run.askToSkip(projection, halt!.position)
    environment.requestOnHalt(projection, halt!.eventId, request)
  }
  return halted.length > 0
}

/** An id that no event has. */
const unknownEvent = "00000000-0000-0000-0000-000000000000"

/** Injects a fault. Returns whether it was possible. */
export const inject = <R>(fleet: Fleet<R>, checkers: Checkers, fault: Fault): boolean => {
  const { environment, run } = fleet
  const { coverage, now, say, scenario } = run
  const alive = fleet.running()
  if (fault.name === "join" && alive.length >= scenario.workersAtMost) return false
  const victim = place(alive.filter((worker) => !worker.isFrozen), fault.victim)
  if (fault.name === "join" || victim === undefined) {
    // If all workers are frozen, another one has to start.
    if (alive.length >= scenario.workersAtMost + 2) return false
    fleet.join(fault.carries)
    return true
  }
  const { ailments } = victim
  const until = now() + fault.lasts
  const hasParked = (name: string) => run.withheld.parked(name).length > 0
  const parking = hasParked(fault.projection) ? fault.projection : fleet.names.find(hasParked) ?? fault.projection
  const ails = (what: string): true => {
    say("scenario", `${victim.name}: ${what} until ${until}`)
    return true
  }
  switch (fault.name) {
    case "leave":
      fleet.leave(victim)
      return true
    case "kill":
      fleet.kill(victim, { harsh: false, isHalfOpen: false })
      return true
    case "vanish":
      fleet.kill(victim, { harsh: true, isHalfOpen: fault.isHalfOpen })
      return true
    case "restart":
      fleet.kill(victim, fault)
      coverage.count("faults", "id of a dead worker reused")
      fleet.later(fault.follows, { workerId: victim.workerId, carries: victim.start.carries })
      return true
    case "freeze":
      fleet.freezeAtWork(victim, fault)
      return true
    case "freeze in a retry":
      fleet.freezeInRetry = fault.lasts
      return environment.requestParked(parking, "retry", "all") > 0
    case "take over":
      fleet.freezeAtWork(victim, fault)
      coverage.count("faults", "id of a frozen worker taken over")
      fleet.later(fault.follows, { workerId: victim.workerId, carries: victim.start.carries })
      return true
    case "twin":
      coverage.count("faults", "id of a live worker")
      fleet.start({ workerId: victim.workerId, carries: victim.start.carries })
      return true
    case "away":
      coverage.count("faults", "stores unreachable for one worker")
      ailments.awayUntil = until
      fleet.cutsOff(victim, until)
      environment.disconnect(victim)
      environment.after(fault.lasts, () => environment.reconnect(victim))
      return ails("stores away")
    case "away for all":
      coverage.count("faults", "stores unreachable for all")
      run.awayUntil = Math.max(run.awayUntil, until)
      environment.disconnect(undefined)
      environment.after(fault.lasts, () => environment.reconnect(undefined))
      return ails("stores unreachable for all")
    case "failing":
      ailments.failingUntil = until
      fleet.keepBusy(fault)
      fleet.cutsOff(victim, until)
      return ails("stores failing")
    case "lossy":
      ailments.lossyUntil = until
      fleet.keepBusy(fault)
      fleet.cutsOff(victim, until)
      return ails("answers lost")
    case "slow":
      ailments.slowUntil = until
      ailments.slowMillis = fault.slow
      fleet.cutsOff(victim, until + 2 * fleet.slowest)
      return ails("stores slow")
    case "presence":
    case "presence for a moment": {
      const isBrief = fault.name === "presence for a moment"
      if (!environment.endPresence(victim, isBrief ? fault.lasts : undefined)) return false
      coverage.count("faults", isBrief ? "presence lost for a moment" : "presence lost")
      say("scenario", `${victim.name}: presence lost`)
      return true
    }
    case "deaf":
      run.deafUntil = until
      return ails("notifications lost and late for all")
    case "slow handler":
      ailments.handlerSlowUntil = until
      fleet.keepBusy(fault)
      return ails("handler slow")
    case "failing handler":
      ailments.handlerFailsUntil = until
      fleet.keepBusy(fault)
      return ails("handler fails")
    case "stuck handler":
      ailments.handlerStuckUntil = until
      fleet.keepBusy(fault)
      return ails("handler does not stop")
    case "blocking handler": {
      if (fleet.unbearable !== undefined) return false
      const { projection } = fault
      fleet.unbearable = { projection, millis: scenario.settings.staleWorkerTimeout * 1.2, position: undefined }
      fleet.keepBusy(fault)
      say("scenario", `the handler of ${projection} blocks its process at its next event`)
      return true
    }
    case "other replica set": {
      if (fleet.running("other").length >= 4) return false
      coverage.count("faults", "worker of another replica set")
      const guest = fleet.start({
        workerId: fleet.newId("x"),
        carries: [fault.projection],
        replicaSet: "other"
      })
      environment.after(fault.follows, () => {
        if (guest.isRunning) fleet.leave(guest)
      })
      return true
    }
    case "changed filter":
      if (checkers.rowsOf(fault.projection).length === 0) return false
      coverage.count("faults", fault.harsh ? "partition key changed" : "filter changed")
      fleet.start({
        workerId: fleet.newId("f"),
        carries: [fault.projection],
        ...(fault.harsh ? { otherKey: true } : { otherFilter: true })
      })
      return true
    case "retry parked":
      return environment.requestParked(
        parking,
        "retry",
        fault.harsh ? "all" : { first: 1 + fault.strikes % 4 }
      ) > 0
    case "drop parked":
      return environment.requestParked(parking, "drop", { first: 1 + fault.strikes % 2 }) > 0
    case "retry halted":
    case "skip halted": {
      const request = fault.name === "skip halted" ? "skip" : "retry"
      if (requestAboutHalts(fleet, checkers, fault, request)) return true
      run.handlersFailUntil = until
      fleet.keepBusy(fault)
      say("scenario", `all handlers fail until ${until}`)
      environment.after(fault.lasts + fault.follows, () => requestAboutHalts(fleet, checkers, fault, request))
      return true
    }
    case "catch up":
      if (alive.length >= scenario.workersAtMost) return false
      fleet.start({ workerId: fleet.newId("c"), carries: fault.carries, catchesUp: true })
      return true
  }
}
