"""Replays of Pollux's workloads: the discipline and small workloads by hand, and the published mean of workload-6."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from cloudfarm.errors import CloudfarmError, InvalidInputError, NotFoundError
from cloudfarm.simulate.pollux.applications import Batching, least_rotation, read_application
from cloudfarm.simulate.pollux.files import ArtifactFiles
from cloudfarm.simulate.pollux.replay import Replay, Rules, replay
from cloudfarm.simulate.pollux.tiresias import Tiresias
from cloudfarm.simulate.pollux.workload import Submission, read_workload

DATA = Path(__file__).parents[2] / "benchmarks" / "data" / "pollux" / "osdi21-artifact.zip"

TOY = {
    # With 10 samples a GPU a step takes 1 s on one GPU and 0.5 s on two of one host, 0.1 s of it for the exchange.
    "traces/toy/placements.csv": (
        "placement,local_bsz,step_time,sync_time\n"
        "1,5,0.5,0.0\n1,10,1.0,0.0\n1,20,2.0,0.0\n2,5,0.3,0.1\n2,10,0.5,0.1\n2,20,0.9,0.1\n"
        "11,5,0.4,0.2\n11,10,0.6,0.2\n11,20,1.0,0.2\n"
    ),
    "traces/toy/scalability.csv": (
        "num_nodes,num_replicas,local_bsz,step_time,sync_time\n4,4,5,0.6,0.4\n4,4,10,0.8,0.4\n4,4,20,1.2,0.4\n"
    ),
    # The gradient is all noise: a step with twice the samples is worth twice as much.
    "traces/toy/validation-10.csv": "progress,iteration,metric,grad_sqr,grad_var\n100,1,0,0,1\n200,2,0,0,1\n",
    "traces/toy/validation-20.csv": "progress,iteration,metric,grad_sqr,grad_var\n110,1,0,0,1\n210,2,0,0,1\n",
    "workloads/one.csv": "name,time,application,num_replicas,batch_size\na,5,toy,1,10\n",
}


def toy(tmp_path: Path, **changed: str) -> ArtifactFiles:
    for name, text in {**TOY, **changed}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return ArtifactFiles(tmp_path)


def run(files: ArtifactFiles, *jobs: Submission, discipline=None, **rules):
    applications = {"toy": read_application(files, "toy")}
    return Replay(jobs, applications, discipline or Tiresias(), Rules(**rules)).run()


# The discipline


def test_jobs_run_in_the_order_of_arrival_and_who_fits_goes_ahead():
    given = Tiresias().assign(60, (4, 4), {"a": 6, "b": 3, "c": 2}, {})
    assert given == {"a": ((0, 4), (1, 2)), "c": ((1, 2),)}


def test_new_jobs_take_the_emptiest_hosts_and_of_equals_the_first():
    given = Tiresias().assign(60, (4, 4, 4), {"a": 1, "b": 2, "c": 5}, {})
    assert given == {"a": ((0, 1),), "b": ((1, 2),), "c": ((2, 4), (0, 1))}


def test_a_running_job_keeps_its_gpus():
    held = {"b": ((1, 1),)}
    assert Tiresias().assign(60, (2, 2), {"a": 2, "b": 1}, held) == {"b": ((1, 1),), "a": ((0, 2),)}


def test_who_had_16_gpu_hours_makes_room_for_who_had_less():
    tiresias, hosts = Tiresias(), (4,)
    first = tiresias.assign(0, hosts, {"old": 4}, {})
    almost, enough = 4 * 3600 - 60, 4 * 3600
    assert tiresias.assign(almost, hosts, {"old": 4, "new": 4}, first) == first
    assert tiresias.assign(enough, hosts, {"old": 4, "new": 4}, first) == {"new": ((0, 4),)}
    # And stands behind it, until it is gone or has had as much itself.
    second = {"new": ((0, 4),)}
    assert tiresias.assign(enough * 2 - 60, hosts, {"old": 4, "new": 4}, second) == second
    assert tiresias.assign(enough * 2, hosts, {"old": 4, "new": 4}, second) == {"old": ((0, 4),)}


def test_waiting_costs_nothing():
    tiresias = Tiresias((100,))
    held = tiresias.assign(0, (1,), {"a": 1, "b": 1}, {})
    held = tiresias.assign(100, (1,), {"a": 1, "b": 1}, held)
    assert list(held) == ["b"]
    assert list(tiresias.assign(199, (1,), {"a": 1, "b": 1}, held)) == ["b"]
    assert list(tiresias.assign(200, (1,), {"a": 1, "b": 1}, held)) == ["a"]


def test_a_job_that_is_gone_is_forgotten():
    tiresias = Tiresias((100,))
    held = tiresias.assign(0, (1,), {"a": 1}, {})
    assert tiresias.assign(100, (1,), {}, held) == {}
    # Another of the same name starts anew, ahead of one that came later.
    assert list(tiresias.assign(160, (1,), {"a": 1, "b": 1}, {})) == ["a"]
    assert list(tiresias.assign(220, (1,), {"a": 1, "b": 1}, {"a": ((0, 1),)})) == ["a"]


def test_several_thresholds_make_several_queues():
    tiresias = Tiresias((10, 20))
    held = tiresias.assign(0, (1,), {"a": 1}, {})
    held = tiresias.assign(25, (1,), {"a": 1, "b": 1}, held)  # a passes both at once
    assert list(held) == ["b"]
    assert list(tiresias.assign(36, (1,), {"a": 1, "b": 1}, held)) == ["b"]
    assert list(tiresias.assign(46, (1,), {"a": 1, "b": 1}, held)) == ["a"]


@pytest.mark.parametrize("thresholds", [(0,), (20, 10), (10, 10), (-1, 5)])
def test_thresholds_ascend(thresholds):
    with pytest.raises(InvalidInputError, match="ascend"):
        Tiresias(thresholds)


# Profiles


def test_a_batch_is_divided_over_gpus_and_passes(tmp_path):
    application = read_application(toy(tmp_path), "toy")
    assert application.batching(10, 1) == Batching(1, 10, 0)
    # Above the first batch size one GPU takes at least two passes: one tells nothing of the variance.
    assert application.batching(15, 1) == Batching(1, 8, 1)
    assert application.batching(20, 2) == Batching(2, 10, 0)
    assert application.batching(20, 1) == Batching(1, 10, 1)
    # Rounded up, but never above the largest measured batch size.
    assert application.batching(19, 3) == Batching(3, 6, 0)


def test_rates_are_gain_over_seconds(tmp_path):
    application = read_application(toy(tmp_path), "toy")
    assert application.rates((1,), 10).tolist() == [1.0, 1.0]
    assert application.rates((2,), 20).tolist() == pytest.approx([4.0, 4.0])  # gain 2 in 0.5 s
    assert application.rates((1, 1), 20).tolist() == pytest.approx([2 / 0.6] * 2)
    # Two passes: a step of 1 s and another without exchange.
    assert application.rates((1,), 20).tolist() == pytest.approx([1.0, 1.0])
    assert application.rates((2,), 10).tolist() == pytest.approx([1 / 0.3] * 2)
    assert application.epoch_ends.tolist() == [100.0, 200.0]  # of the run with least progress


def test_seconds_are_interpolated_between_batches(tmp_path):
    application = read_application(toy(tmp_path), "toy")
    assert application.step_seconds((2,), 15) == pytest.approx((0.7, 0.1))
    with pytest.raises(InvalidInputError, match="25 samples a GPU were not measured"):
        application.step_seconds((2,), 25)
    with pytest.raises(InvalidInputError, match="more than 4 GPUs"):
        application.step_seconds((5,), 10)


def test_an_unmeasured_placement_lies_between_measured_ones(tmp_path):
    application = read_application(toy(tmp_path), "toy")
    # (3 hosts, 3 GPUs) is half-way from two hosts to four.
    assert application.step_seconds((1, 1, 1), 10) == pytest.approx((0.7, 0.3))
    with pytest.raises(InvalidInputError, match="nothing was measured around"):
        application.step_seconds((4, 4, 4), 10)


def test_a_placement_is_a_ring():
    assert {least_rotation(each) for each in ((4, 4, 1), (4, 1, 4), (1, 4, 4))} == {(1, 4, 4)}
    assert least_rotation((2, 1, 3)) == (1, 3, 2)


def test_gradients_are_interpolated_between_batch_sizes(tmp_path):
    files = toy(
        tmp_path,
        **{
            "traces/toy/validation-10.csv": "progress,grad_sqr,grad_var\n100,1,4\n",
            "traces/toy/validation-20.csv": "progress,grad_sqr,grad_var\n100,2,8\n200,9,9\n",
        },
    )
    application = read_application(files, "toy")
    assert application.epochs == 1  # as many as every run has
    # 15 samples on 3 GPUs, 5 on each: s = 1.5 and v = 6, so the gain is 7.5 / (6 / 1.5 + 1.5); a step takes 0.5 s.
    assert application.rates((1, 1, 1), 15).tolist() == pytest.approx([7.5 / 5.5 / 0.5])
    with pytest.raises(InvalidInputError, match="a batch of 9 is outside 10 to 20"):
        application.rates((1,), 9)


# Replays by hand


def test_a_job_alone_waits_for_the_round_restarts_and_trains(tmp_path):
    outcome = replay(toy(tmp_path), "workloads/one.csv", Tiresias())
    # Arrives at 5, gets its GPU in the round at 60, makes progress from 90 on: 200 steps of a second.
    assert [job.completed_s for job in outcome.jobs] == [290]
    assert outcome.mean_completion_s == 285
    assert outcome.jobs[0].restarts == 0
    assert outcome.rounds == 5  # at 60, 120, 180, 240 and 300, which finds nobody
    assert outcome.events == 1 + 2 + outcome.rounds


def test_nothing_is_decided_at_the_very_beginning(tmp_path):
    outcome = run(toy(tmp_path), Submission("a", 0, "toy", 1, 10))
    assert outcome.jobs[0].completed_s == 290


def test_who_arrives_with_a_round_takes_part_in_it(tmp_path):
    outcome = run(toy(tmp_path), Submission("a", 120, "toy", 1, 10), Submission("b", 121, "toy", 1, 10))
    assert [job.completed_s for job in outcome.jobs] == [350, 410]


def test_gpus_of_a_complete_job_stay_taken_until_the_next_round(tmp_path):
    outcome = run(
        toy(tmp_path), Submission("a", 5, "toy", 1, 10), Submission("b", 5, "toy", 1, 10), hosts=(1,)
    )
    # a is complete at 290; b gets the GPU at 300 and makes progress from 330 on.
    assert [job.completed_s for job in outcome.jobs] == [290, 530]
    assert outcome.mean_completion_s == (285 + 525) / 2


@pytest.mark.parametrize("step_s", ["1.052", "1.0500001"])
def test_who_completes_just_after_a_round_was_still_there_in_it(tmp_path, step_s):
    # 90 + 2 x 105.2 s: each epoch's end is rounded down, so it completes on paper at 300, in truth after the round.
    slow = TOY["traces/toy/placements.csv"].replace("1,10,1.0,", f"1,10,{step_s},")
    files = toy(tmp_path, **{"traces/toy/placements.csv": slow})
    outcome = run(
        files, Submission("a", 5, "toy", 1, 10), Submission("b", 5, "toy", 1, 10), hosts=(1,), restart_s=30
    )
    assert outcome.jobs[0].completed_s == 90 + 105 + 105 == 300
    assert outcome.jobs[1].completed_s == 360 + 30 + 210  # not in the round at 300


def test_who_completes_just_before_a_round_is_gone_in_it(tmp_path):
    # 90 + 2 x 104.8 s: rounded up to 300 as well, but in truth before the round.
    fast = TOY["traces/toy/placements.csv"].replace("1,10,1.0,", "1,10,1.048,")
    files = toy(tmp_path, **{"traces/toy/placements.csv": fast})
    outcome = run(
        files, Submission("a", 5, "toy", 1, 10), Submission("b", 5, "toy", 1, 10), hosts=(1,), restart_s=30
    )
    assert outcome.jobs[0].completed_s == 300
    assert outcome.jobs[1].completed_s == 300 + 30 + 210


def test_a_preempted_job_keeps_its_progress_and_pays_for_the_restart(tmp_path):
    outcome = run(
        toy(tmp_path),
        Submission("a", 5, "toy", 1, 10),
        Submission("b", 65, "toy", 1, 10),
        hosts=(1,),
        discipline=Tiresias((60,)),
    )
    a, b = outcome.jobs
    # a runs 60-120 (30 steps of progress), then has had its 60 GPU-seconds and b comes: 120-180 (30 steps), and
    # moves down behind a, which runs 180-... : 210 + 170 = 380. b from 420: 450 + 170.
    assert (a.completed_s, a.restarts) == (380, 1)
    assert (b.completed_s, b.restarts) == (620, 1)


def test_the_same_replay_twice_gives_the_same(tmp_path):
    files = toy(tmp_path)
    jobs = [Submission(f"j{n}", 7 * n, "toy", 1 + n % 2, 10 + 10 * (n % 2)) for n in range(30)]
    rules = {"hosts": (2, 2)}
    assert run(files, *jobs, **rules) == run(files, *jobs, **rules)


def test_a_job_that_never_fits_is_reported_and_not_waited_for(tmp_path):
    with pytest.raises(InvalidInputError, match="these wait: big") as failed:
        run(toy(tmp_path), Submission("big", 0, "toy", 3, 10), Submission("a", 0, "toy", 1, 10), hosts=(2,))
    assert failed.value.data == {"jobs": ["big"]}


@pytest.mark.parametrize(
    ("allocation", "said"),
    [
        ({"a": ((0, 2),), "b": ((0, 2),)}, "more GPUs than host 0"),
        ({"a": ((0, 1),)}, "did not ask for"),
        ({"c": ((0, 1),)}, "did not ask for"),
    ],
)
def test_a_discipline_that_errs_is_found_out(tmp_path, allocation, said):
    class Wrong:
        def assign(self, *_):
            return allocation

    with pytest.raises(CloudfarmError, match=said):
        run(
            toy(tmp_path),
            Submission("a", 0, "toy", 2, 20),
            Submission("b", 0, "toy", 2, 20),
            discipline=Wrong(),
            hosts=(2,),
        )


@pytest.mark.parametrize("rules", [{"hosts": ()}, {"hosts": (4, 0)}, {"interval_s": 0}, {"restart_s": -1}])
def test_rules_that_cannot_be_are_refused(rules):
    with pytest.raises(InvalidInputError):
        Rules(**rules)


def test_a_job_of_an_unknown_application_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="a: nothing was measured of chess"):
        run(toy(tmp_path), Submission("a", 0, "chess", 1, 10))


def test_an_empty_workload_is_refused():
    with pytest.raises(InvalidInputError, match="without jobs"):
        Replay([], {}, Tiresias())


def test_a_job_that_would_never_get_on_is_refused(tmp_path):
    still = TOY["traces/toy/validation-10.csv"].replace("0,0,1", "0,0,0")
    with pytest.raises(InvalidInputError, match="never gets on"):
        run(toy(tmp_path, **{"traces/toy/validation-10.csv": still}), Submission("a", 0, "toy", 1, 10))


# Files


@pytest.mark.parametrize(
    ("name", "text", "line", "said"),
    [
        ("workloads/one.csv", "name,time,application,num_replicas\n", 1, "the header lacks batch_size"),
        ("workloads/one.csv", "name,time,application,num_replicas,batch_size\n", 2, "there is no row"),
        ("workloads/one.csv", TOY["workloads/one.csv"] + "b,5,toy,1\n", 3, "4 fields where the header has 5"),
        ("workloads/one.csv", TOY["workloads/one.csv"] + "\nb,5.5,toy,1,10\n", 4, "'5.5' is no whole number"),
        ("workloads/one.csv", TOY["workloads/one.csv"] + "b,-5,toy,1,10\n", 3, "time -5 is below 0"),
        ("workloads/one.csv", TOY["workloads/one.csv"] + "b,5,toy,0,10\n", 3, "num_replicas 0 is below 1"),
        ("workloads/one.csv", TOY["workloads/one.csv"] + ",5,toy,1,10\n", 3, "name is empty"),
        ("workloads/one.csv", TOY["workloads/one.csv"] + "a,9,toy,1,10\n", 3, "there is another job a"),
        (
            "traces/toy/placements.csv",
            TOY["traces/toy/placements.csv"] + "1,30,fast,0\n",
            11,
            "step_time 'fast' is no number",
        ),
        ("traces/toy/placements.csv", TOY["traces/toy/placements.csv"] + "1,30,inf,0\n", 11, "not a finite"),
        ("traces/toy/placements.csv", TOY["traces/toy/placements.csv"] + "1,30,1,-1\n", 11, "sync_time -1.0"),
        ("traces/toy/placements.csv", TOY["traces/toy/placements.csv"] + "10,30,1,0\n", 11, "placement '10'"),
        (
            "traces/toy/placements.csv",
            TOY["traces/toy/placements.csv"] + "1,20,1,0\n",
            11,
            "stands there twice",
        ),
        (
            "traces/toy/validation-10.csv",
            "progress,grad_sqr,grad_var\n100,0,1\n100,0,1\n",
            3,
            "progress does not rise",
        ),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path, name, text, line, said):
    with pytest.raises(InvalidInputError) as failed:
        replay(toy(tmp_path, **{name: text}), "workloads/one.csv", Tiresias())
    assert failed.value.detail.startswith(f"{name}, line {line}: ")
    assert said in failed.value.detail
    assert failed.value.data == {"file": name, "line": line}


def test_a_batch_size_that_is_none_and_missing_runs_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="'few' is no batch size"):
        read_application(toy(tmp_path, **{"traces/toy/validation-few.csv": "progress\n"}), "toy")
    with pytest.raises(NotFoundError, match=r"has no traces/other/placements\.csv"):
        read_application(ArtifactFiles(tmp_path), "other")


def test_files_come_from_a_folder_or_a_zip_with_or_without_a_folder_on_top(tmp_path):
    folder = toy(tmp_path / "simulator")
    for top in ("", "simulator/"):
        with zipfile.ZipFile(tmp_path / "it.zip", "w") as archive:
            if top:
                archive.mkdir(top)
            for name, text in TOY.items():
                archive.writestr(top + name, text)
        packed = ArtifactFiles(tmp_path / "it.zip")
        assert packed.names("traces/toy/validation-*.csv") == folder.names("traces/toy/validation-*.csv")
        assert packed.text("workloads/one.csv") == folder.text("workloads/one.csv")
    assert folder.names("traces/*") == []


def test_no_artifact_and_no_zip_are_told_apart(tmp_path):
    with pytest.raises(NotFoundError, match="there is no"):
        ArtifactFiles(tmp_path / "missing.zip")
    (tmp_path / "text.zip").write_text("not packed")
    with pytest.raises(InvalidInputError, match="neither a folder nor a zip"):
        ArtifactFiles(tmp_path / "text.zip")


# The published figure


def test_workload_6_under_tiresias_has_the_published_mean_completion_time():
    files = ArtifactFiles(DATA)
    outcome = replay(files, "workloads/workload-6.csv", Tiresias())
    assert len(outcome.jobs) == len(read_workload(files, "workloads/workload-6.csv")) == 160
    assert f"{outcome.mean_completion_s:.2f}" == "3469.69"
    assert outcome.mean_completion_s == 3469.69375


def test_the_measured_applications_are_read_whole():
    files = ArtifactFiles(DATA)
    epochs = {"bert": 2, "cifar10": 100, "deepspeech2": 80, "imagenet": 90, "ncf": 10, "yolov3": 50}
    for name, expected in epochs.items():
        application = read_application(files, name)
        assert application.epochs == expected
        assert (np.diff(application.epoch_ends) > 0).all()
    assert read_application(files, "yolov3").largest_local == 8
