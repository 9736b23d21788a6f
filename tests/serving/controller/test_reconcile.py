"""One promise of the controller a test: values in, steps out."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.controller import reconcile, shapes
from serving.controller.shapes import Admit, Complete, Drain, Fail, Mark, Prepare, Start, Stop

LIMITS = shapes.Limits()
PREPARED = shapes.Preparation("ready")


def entity(id="e1", **changes):
    return shapes.Entity(id=id, name=f"name-{id}", **changes)


def endpoint(active=(), pending=(), **changes):
    return shapes.Endpoint(
        id="ep",
        name="flights",
        active_version=1 if active else None,
        active=tuple(active),
        pending_version=2 if pending else None,
        pending=tuple(pending),
        **changes,
    )


def replica(id="r1", entity_id="e1", state="READY", **changes):
    facts = {"answered": state == "READY", "seconds": 5.0, **changes}
    return shapes.Replica(id=id, endpoint_id="ep", entity_id=entity_id, state=state, **facts)


def plan(
    endpoints,
    replicas=(),
    memory=None,
    now=1000.0,
    demand=None,
    states=None,
    prepared=None,
    gpus=(0, 0),
):
    entities = {e.id for one in endpoints for e in (*one.active, *one.pending)}
    observed = shapes.Observed(
        replicas=replicas,
        preparations=dict.fromkeys(entities, PREPARED) if prepared is None else prepared,
        demand=demand or {},
        states=states or {},
        gpus=gpus[0],
        free_gpus=gpus[1],
    )
    return reconcile.reconcile(endpoints, observed, memory or {}, LIMITS, now)


def of(kind, made):
    return [step for step in made.steps if isinstance(step, kind)]


def state(made, entity_id="e1"):
    return next(step.state for step in of(Mark, made) if step.entity_id == entity_id)


PROVEN = shapes.Memory(proven=True, busy_at=1000.0)


# devices


def test_an_entity_waits_for_the_gpus_that_it_takes_and_says_for_what():
    wants = entity(gpus=4, workload="MULTIGPU_MEDIUM")
    none, few = (plan([endpoint(pending=[wants])], gpus=(n, n)) for n in (0, 2))
    for made in (none, few):
        assert of(Start, made) == of(Fail, made) == of(Complete, made) == []
        assert state(made).deployment == "DEPLOYMENT_CREATING"
    said = "Waiting for a GPU: MULTIGPU_MEDIUM takes 4 GPUs, this machine has"
    rest = "; change workload_type or delete the endpoint."
    assert [state(none).message, state(few).message] == [f"{said} none{rest}", f"{said} 2{rest}"]


def test_gpus_are_given_out_once():
    one, two = (entity(i, gpus=1, workload="GPU_SMALL") for i in ("e1", "e2"))
    made = plan([endpoint(pending=[one, two])], gpus=(1, 1))
    assert [step.entity_id for step in of(Start, made)] == ["e1"]
    assert state(made, "e2").message == "Waiting for a GPU: GPU_SMALL takes 1 GPU; others use them."
    assert len(of(Start, plan([endpoint(pending=[one, two])], gpus=(2, 2)))) == 2


# starting


def test_a_new_entity_is_prepared_before_it_is_started():
    made = plan([endpoint(pending=[entity()])], prepared={})
    assert of(Prepare, made) == [Prepare("ep", "e1")]
    assert of(Start, made) == []
    assert state(made).deployment == "DEPLOYMENT_CREATING"


def test_a_prepared_entity_is_started_once():
    first = plan([endpoint(pending=[entity()])])
    assert of(Start, first) == [Start("ep", "e1", 4)]
    starting = replica(state="STARTING", answered=False)
    second = plan([endpoint(pending=[entity()])], [starting], first.memory)
    assert of(Start, second) == []


def test_the_stage_of_the_environment_is_the_message():
    working = shapes.Preparation("working", "Downloading 12/40")
    made = plan([endpoint(pending=[entity()])], prepared={"e1": working})
    assert state(made) == shapes.State("DEPLOYMENT_CREATING", "Downloading 12/40")


def test_an_entity_that_never_answered_starts_one_replica_and_then_the_rest():
    big = entity(min_replicas=3, max_replicas=3, asked_replicas=3)
    assert len(of(Start, plan([endpoint(pending=[big])]))) == 1
    made = plan([endpoint(pending=[big])], [replica(state="STARTING", answered=True)])
    assert of(Admit, made) == [Admit("r1")]
    assert len(of(Start, made)) == 2


def test_an_external_entity_needs_no_replica():
    made = plan([endpoint(pending=[entity(needs_replicas=False)])], prepared={})
    assert of(Complete, made) == [Complete("ep", 2)]
    assert of(Prepare, made) == []
    assert state(made).deployment == "DEPLOYMENT_READY"


# an update


def test_a_configuration_is_completed_only_when_every_new_entity_answered():
    both = endpoint(active=[entity("old")], pending=[entity("e1"), entity("e2")])
    seen = [replica("o", "old"), replica("a", "e1"), replica("b", "e2", "STARTING")]
    waiting = plan([both], seen)
    assert of(Complete, waiting) == []
    seen[2] = dataclasses.replace(seen[2], answered=True)
    made = plan([both], seen, waiting.memory)
    assert of(Complete, made) == [Complete("ep", 2)]
    assert made.steps.index(Admit("b")) < made.steps.index(Complete("ep", 2))
    assert of(Drain, made) == []


def test_old_entities_drain_after_the_new_configuration_took_over():
    made = plan([endpoint(active=[entity("e1")])], [replica("o", "old"), replica("a", "e1")])
    assert of(Drain, made) == [Drain("o")]
    drained = replica("o", "old", "DRAINING", seconds=LIMITS.settle_seconds)
    made = plan([endpoint(active=[entity("e1")])], [drained, replica("a", "e1")])
    assert of(Stop, made) == [Stop("o", True, "drained")]


def test_a_change_of_traffic_alone_restarts_nothing():
    same = endpoint(active=[entity()], pending=[entity()])
    made = plan([same], [replica()])
    assert of(Complete, made) == [Complete("ep", 2)]
    assert of(Start, made) == of(Drain, made) == of(Stop, made) == []


def test_a_restarting_old_entity_does_not_hold_up_the_change_that_takes_its_traffic():
    both = endpoint(active=[entity("e1"), entity("bad")], pending=[entity("e1"), entity("bad")])
    crashing = shapes.Memory(proven=True, failures=7, retry_at=1020, trouble="boom")
    made = plan([both], [replica("a", "e1")], {"e1": PROVEN, "bad": crashing})
    assert of(Complete, made) == [Complete("ep", 2)]


def test_an_entity_of_an_earlier_version_must_answer_again_before_it_takes_over():
    back = endpoint(active=[entity("e2")], pending=[entity("e1")])
    states = {"e1": shapes.State("DEPLOYMENT_READY", "Ready")}
    made = plan([back], [replica("b", "e2")], states=states)
    assert of(Complete, made) == []
    assert len(of(Start, made)) == 1


def test_a_model_that_dies_at_load_fails_the_update_at_once_with_its_last_lines():
    pending = [entity("e1"), entity("e2")]
    dead = replica("a", "e1", "STARTING", alive=False, last_lines="ValueError: no such file")
    made = plan([endpoint(active=[entity("old")], pending=pending)], [dead, replica("o", "old")])
    assert of(Start, made) == []
    (failed,) = of(Fail, made)
    assert failed.version == 2
    assert "name-e1" in failed.message
    assert "ValueError: no such file" in failed.message
    assert of(Complete, made) == []
    assert state(made, "e1").deployment == "DEPLOYMENT_FAILED"
    assert state(made, "e2").deployment == "DEPLOYMENT_ABORTED"
    assert Drain("o") not in made.steps


def test_a_model_that_hangs_fails_the_update_at_the_limit():
    hanging = replica(state="STARTING", answered=False, seconds=LIMITS.deployment_seconds - 1)
    assert of(Fail, plan([endpoint(pending=[entity()])], [hanging])) == []
    hanging = dataclasses.replace(hanging, seconds=LIMITS.deployment_seconds)
    made = plan([endpoint(pending=[entity()])], [hanging])
    assert len(of(Fail, made)) == 1
    assert of(Stop, made)[0].finish is False


def test_a_failed_preparation_fails_the_update():
    failed = {"e1": shapes.Preparation("failed", "No solution found for scikit-learn==99.")}
    made = plan([endpoint(pending=[entity()])], prepared=failed)
    assert "scikit-learn==99" in of(Fail, made)[0].message


def test_a_start_that_a_crash_of_everything_ended_does_not_fail_the_update():
    lost = replica(state="STARTING", alive=False, found_dead=True)
    made = plan([endpoint(pending=[entity()])], [lost])
    assert of(Fail, made) == []
    assert len(of(Start, made)) == 1


def test_what_a_failed_update_started_is_ended_at_once():
    made = plan([endpoint(active=[entity("old")])], [replica("a", "e1", "STARTING")])
    assert of(Stop, made) == [Stop("a", False, "not needed any more")]


# trouble


def test_a_crashed_replica_is_restarted_with_doubling_back_off():
    waits, memory, now = [], {"e1": PROVEN}, 1000.0
    for _ in range(11):
        dead = replica(alive=False, last_lines="Killed", seconds=0.0)
        made = plan([endpoint(active=[entity()])], [dead], memory, now)
        assert of(Start, made) == []
        assert state(made).deployment == "DEPLOYMENT_RECOVERING"
        retry = made.memory["e1"].retry_at
        waits.append(round(retry - now, 6))
        early = plan([endpoint(active=[entity()])], [], made.memory, retry - 0.01)
        assert of(Start, early) == []
        again = plan([endpoint(active=[entity()])], [], made.memory, retry)
        assert of(Start, again) == [Start("ep", "e1", 4)]
        memory, now = again.memory, retry
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]


def test_time_that_a_replica_worked_is_taken_off_its_wait():
    tired = {"e1": dataclasses.replace(PROVEN, failures=4)}
    dead = replica(alive=False, last_lines="Killed", seconds=10.0)
    made = plan([endpoint(active=[entity()])], [dead], tired)
    assert made.memory["e1"].retry_at == 1000.1


def test_a_replica_that_could_not_load_is_tried_without_a_zygote_until_one_answers():
    stillborn = replica(state="STARTING", alive=False, last_lines="boom")
    made = plan([endpoint(active=[entity()])], [stillborn], {"e1": PROVEN})
    again = plan([endpoint(active=[entity()])], [], made.memory, 1001.0)
    assert of(Start, again) == [Start("ep", "e1", 4, fresh=True)]
    answered = [replica(state="STARTING", answered=True)]
    made = plan([endpoint(active=[entity()])], answered, made.memory)
    assert not made.memory["e1"].stillborn


def test_good_work_resets_the_back_off():
    tired = {"e1": dataclasses.replace(PROVEN, failures=9)}
    short = plan([endpoint(active=[entity()])], [replica(seconds=59)], tired)
    assert short.memory["e1"].failures == 9
    long = plan([endpoint(active=[entity()])], [replica(seconds=60)], tired)
    assert long.memory["e1"].failures == 0


def test_a_frozen_replica_is_ended_and_counts_as_a_failure():
    frozen = replica(silent_seconds=LIMITS.freeze_seconds)
    made = plan([endpoint(active=[entity()])], [frozen], {"e1": PROVEN})
    assert of(Stop, made)[0].finish is False
    assert of(Stop, made)[0].kill  # it could not hear that it should end
    assert made.memory["e1"].failures == 1


def test_a_replica_whose_model_does_not_return_is_ended():
    busy = replica(predicting_seconds=LIMITS.predict_seconds - 1, silent_seconds=0)
    assert of(Stop, plan([endpoint(active=[entity()])], [busy], {"e1": PROVEN})) == []
    stuck = dataclasses.replace(busy, predicting_seconds=LIMITS.predict_seconds)
    made = plan([endpoint(active=[entity()])], [stuck], {"e1": PROVEN})
    assert "did not return" in of(Stop, made)[0].reason


def test_a_replica_over_its_memory_is_ended():
    made = plan([endpoint(active=[entity()])], [replica(memory_share=1.01)], {"e1": PROVEN})
    assert "memory" in of(Stop, made)[0].reason
    assert of(Stop, made)[0].kill  # in the second that it is asked it takes gigabytes


def test_looks_are_short_only_while_something_may_need_a_step():
    left = {"gone": shapes.Demand(0, 2, 5)}
    still = shapes.Observed([replica()], demand={"e1": shapes.Demand(0, 0, 5), **left})
    calm = shapes.Plan((), {"e1": PROVEN})
    assert not reconcile.is_restless(still, calm, 1000.0)
    for changes in (
        {"replicas": [replica(state="STARTING")]},
        {"replicas": [replica(growing=True)]},
        {"replicas": [replica(silent_seconds=1)]},
        {"demand": {"e1": shapes.Demand(0, 1, 5)}},
        {"preparations": {"e1": shapes.Preparation("working")}},
    ):
        assert reconcile.is_restless(dataclasses.replace(still, **changes), calm, 1000.0)
    waits = shapes.Plan((), {"e1": dataclasses.replace(PROVEN, retry_at=1001.0)})
    assert reconcile.is_restless(still, waits, 1000.0)


def test_a_leaking_replica_is_replaced_the_new_one_first():
    leaking = replica("r1", memory_share=0.85, memory_share_at_ready=0.2)
    first = plan([endpoint(active=[entity()])], [leaking], {"e1": PROVEN})
    assert len(of(Start, first)) == 1
    assert of(Drain, first) == []
    second = plan([endpoint(active=[entity()])], [leaking, replica("r2")], first.memory)
    assert of(Drain, second) == [Drain("r1")]
    assert of(Start, second) == []


def test_a_replica_close_to_its_limit_gets_no_more_requests_while_the_new_one_starts():
    close = replica("r1", memory_share=0.92, memory_share_at_ready=0.2)
    made = plan([endpoint(active=[entity()])], [close, replica("r2", state="STARTING")])
    assert of(Drain, made) == [Drain("r1")]
    assert of(Stop, made) == []


def test_a_model_that_is_large_from_the_start_is_left_alone():
    large = replica(memory_share=0.85, memory_share_at_ready=0.84)
    made = plan([endpoint(active=[entity()])], [large], {"e1": PROVEN})
    assert of(Start, made) == of(Drain, made) == []


# zero and back


SLEEPY = entity(min_replicas=0, scale_to_zero=True)


def test_an_idle_entity_goes_to_zero():
    idle = {"e1": dataclasses.replace(PROVEN, busy_at=1000 - LIMITS.zero_seconds)}
    made = plan([endpoint(active=[SLEEPY])], [replica()], idle)
    assert of(Drain, made) == [Drain("r1")]
    asleep = plan([endpoint(active=[SLEEPY])], [], made.memory, 1001.0)
    assert of(Start, asleep) == []
    assert state(asleep) == shapes.State("DEPLOYMENT_READY", "Scaled to zero")


@pytest.mark.parametrize(
    "seen",
    [
        shapes.Demand(in_flight=1),
        shapes.Demand(last_request_ms=77),
        shapes.Demand(waiting=1),
    ],
)
def test_a_busy_entity_does_not_go_to_zero(seen):
    idle = {"e1": dataclasses.replace(PROVEN, busy_at=1000 - LIMITS.zero_seconds)}
    made = plan([endpoint(active=[SLEEPY])], [replica()], idle, demand={"e1": seen})
    assert of(Drain, made) == []
    assert made.memory["e1"].busy_at == 1000


def test_two_hundred_waiting_requests_cause_one_start():
    asleep = {"e1": dataclasses.replace(PROVEN, awake=False, busy_at=0)}
    waiting = {"e1": shapes.Demand(waiting=200)}
    made = plan([endpoint(active=[SLEEPY])], [], asleep, demand=waiting)
    assert of(Start, made) == [Start("ep", "e1", 4)]
    starting = [replica(state="STARTING")]
    later = plan([endpoint(active=[SLEEPY])], starting, made.memory, 1010.0, demand=waiting)
    assert of(Start, later) == []


def test_a_request_that_meets_a_draining_replica_gets_a_new_one():
    asleep = {"e1": dataclasses.replace(PROVEN, awake=False, busy_at=0)}
    waiting = {"e1": shapes.Demand(waiting=1)}
    draining = [replica(state="DRAINING", seconds=0.1)]
    made = plan([endpoint(active=[SLEEPY])], draining, asleep, demand=waiting)
    assert len(of(Start, made)) == 1


def test_an_entity_that_sleeps_stays_asleep_over_a_restart_of_the_controller():
    made = plan([endpoint(active=[SLEEPY])], [], {})
    assert of(Start, made) == []


def test_a_new_entity_that_may_sleep_must_answer_first_and_stays_for_the_idle_time():
    first = plan([endpoint(pending=[SLEEPY])])
    assert len(of(Start, first)) == 1
    assert of(Complete, first) == []
    answered = [replica(state="STARTING", answered=True)]
    made = plan([endpoint(pending=[SLEEPY])], answered, first.memory, 5000.0)
    assert of(Complete, made) == [Complete("ep", 2)]
    assert of(Drain, made) == []
    assert made.memory["e1"].busy_at == 5000.0


def test_an_entity_fallen_asleep_does_not_hold_up_an_update():
    sleeping = {"e1": dataclasses.replace(PROVEN, awake=False), "e2": PROVEN}
    made = plan([endpoint(pending=[SLEEPY, entity("e2")])], [replica("b", "e2")], sleeping)
    assert of(Complete, made) == [Complete("ep", 2)]


# more and fewer


ROOMY = entity(min_replicas=1, max_replicas=3, asked_replicas=3)


def test_sustained_waiting_adds_a_replica_and_stops_at_the_maximum():
    waiting = {"e1": shapes.Demand(waiting=5, in_flight=4)}
    made = plan([endpoint(active=[ROOMY])], [replica()], {"e1": PROVEN}, 1000.0, waiting)
    assert of(Start, made) == []
    made = plan([endpoint(active=[ROOMY])], [replica()], made.memory, 1003.0, waiting)
    assert len(of(Start, made)) == 1
    memory, now, there = made.memory, 1003.0, [replica(), replica("r2"), replica("r3")]
    for _ in range(10):
        now += 3
        made = plan([endpoint(active=[ROOMY])], there, memory, now, waiting)
        memory = made.memory
        assert of(Start, made) == []


def test_a_short_wait_adds_nothing():
    waiting = {"e1": shapes.Demand(waiting=5)}
    made = plan([endpoint(active=[ROOMY])], [replica()], {"e1": PROVEN}, 1000.0, waiting)
    made = plan([endpoint(active=[ROOMY])], [replica()], made.memory, 1002.0)
    made = plan([endpoint(active=[ROOMY])], [replica()], made.memory, 1004.0, waiting)
    assert of(Start, made) == []


def test_spare_replicas_leave_one_by_one_but_never_below_the_minimum():
    memory, there = {"e1": dataclasses.replace(PROVEN, extra=2)}, ["r1", "r2", "r3"]
    now = 1000.0
    for _ in range(20):
        made = plan([endpoint(active=[ROOMY])], [replica(r) for r in there], memory, now)
        leaving = [step.replica_id for step in of(Drain, made)]
        assert len(leaving) <= 1
        there = [r for r in there if r not in leaving]
        memory, now = made.memory, now + 31
    assert there == ["r1"]


def test_what_does_not_fit_is_said():
    tight = entity(min_replicas=2, max_replicas=2, asked_replicas=16)
    made = plan([endpoint(active=[tight])], [replica(), replica("r2")], {"e1": PROVEN})
    assert state(made).message == "Ready; 2 of 16 replicas fit on this machine"


# stop, delete


def test_a_stopped_endpoint_drains_and_its_update_waits():
    both = endpoint(active=[entity()], pending=[entity()], stopped=True)
    made = plan([both], [replica()])
    assert made.steps == (Drain("r1"),)


def test_an_endpoint_that_is_started_again_must_answer_again():
    again = shapes.Endpoint("ep", "flights", False, 3, (entity(),), 3, (entity(),))
    first = plan([again])
    assert of(Complete, first) == []
    assert len(of(Start, first)) == 1
    made = plan([again], [replica(state="STARTING", answered=True)], first.memory)
    assert of(Complete, made) == [Complete("ep", 3)]
    dead = [replica(state="STARTING", alive=False, last_lines="boom")]
    assert "boom" in of(Fail, plan([again], dead, first.memory))[0].message


def test_replicas_of_a_deleted_endpoint_are_ended_at_once():
    made = plan([], [replica(), replica("r2", state="STARTING")])
    assert {step.replica_id for step in of(Stop, made)} == {"r1", "r2"}
    assert all(not step.finish for step in of(Stop, made))
    assert made.memory == {}


def test_nothing_to_do_is_no_step():
    states = {"e1": shapes.State("DEPLOYMENT_READY", "Ready")}
    made = plan([endpoint(active=[entity()])], [replica()], {"e1": PROVEN}, states=states)
    assert made.steps == ()


replicas = st.lists(
    st.builds(
        shapes.Replica,
        id=st.uuids().map(str),
        endpoint_id=st.just("ep"),
        entity_id=st.sampled_from(["e1", "e2", "gone"]),
        state=st.sampled_from(["STARTING", "READY", "DRAINING"]),
        alive=st.booleans(),
        answered=st.booleans(),
        seconds=st.floats(0, 4000),
        silent_seconds=st.floats(0, 20),
        memory_share=st.floats(0, 1.5),
    ),
    max_size=6,
)


@given(replicas=replicas, sleepy=st.booleans(), stopped=st.booleans(), waiting=st.integers(0, 9))
def test_whatever_is_seen_the_steps_are_sound(replicas, sleepy, stopped, waiting):
    """No replica is both admitted and ended; nothing takes over without an answer of its own; the
    number of running and started replicas stays within the maximum."""
    new = entity("e2", max_replicas=2, asked_replicas=2, scale_to_zero=sleepy)
    both = endpoint(active=[entity("e1")], pending=[new], stopped=stopped)
    made = plan([both], replicas, demand={"e2": shapes.Demand(waiting=waiting)})
    ended = {step.replica_id for step in of(Stop, made)}
    admitted = {step.replica_id for step in of(Admit, made)}
    assert not ended & admitted
    if of(Complete, made):
        answered = {r.id for r in replicas if r.entity_id == "e2" and r.alive}
        answered &= {r.id for r in replicas if r.state == "READY"} | admitted
        assert answered - ended
    live = {r.id for r in replicas if r.entity_id == "e2" and r.state != "DRAINING"} - ended
    starts = [step for step in of(Start, made) if step.entity_id == "e2"]
    assert not starts or len(live) + len(starts) <= 2 + len(live)
    assert {r.id for r in replicas if not r.alive} <= ended
