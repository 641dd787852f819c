//! No schedule that the checker tries breaks a rule of the workers' protocol, and it finds every planted bug.
//!
//! `SHARDYARD_SCHEDULES=10000000 cargo test -p shardyard-model --release` tries so many of each kind (two minutes a million on
//! one core). A failure prints its schedule; with that in a file, `SHARDYARD_SCHEDULE=FILE cargo test -p shardyard-model
//! --release -- --ignored --nocapture` runs it once more.

use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use shardyard_model::flawed::FLAWS;
use shardyard_model::sound::block::{SEEN, run_any};
use shardyard_model::sound::crew::{Crew, Pace};
use shardyard_model::sound::status::{Schedule, State};
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner, thread};

/// Schedules of each kind when nothing else is said.
const SCHEDULES: usize = 100_000;
/// They are looked through for planted bugs in so many parts.
const ROUNDS: usize = 4;
/// Changes of priority in a schedule that goes by priorities: most bugs need no more.
const CHANGES: usize = 4;
/// No fair schedule of so small a block takes so many steps.
const MAX_STEPS: usize = 100_000;

fn schedules() -> usize {
    let Ok(text) = std::env::var("SHARDYARD_SCHEDULES") else { return SCHEDULES };
    text.parse().unwrap_or_else(|_| panic!("SHARDYARD_SCHEDULES: got {text:?}, expected a number. try: 1000000"))
}

/// Runs under every schedule that the scheduler chooses; how many.
fn explore(scheduler: impl Scheduler + 'static, persistence: FailurePersistence, run: fn()) -> usize {
    let mut config = Config::new();
    config.max_steps = MaxSteps::FailAfter(MAX_STEPS);
    config.failure_persistence = persistence;
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(run)
}

/// Runs under all schedules there are.
fn exhaust(run: fn()) {
    assert!(explore(DfsScheduler::new(None, false), FailurePersistence::Print, run) > 10);
}

#[test]
fn blocks_end_in_order_whatever_the_schedule() {
    explore(RandomScheduler::new_from_seed(1, schedules()), FailurePersistence::Print, run_any);
    explore(PctScheduler::new_from_seed(2, CHANGES, schedules()), FailurePersistence::Print, run_any);
    let seen = [&SEEN.aborted, &SEEN.parked, &SEEN.worn_out, &SEEN.alone, &SEEN.rested, &SEEN.failed];
    assert!(seen.iter().all(|count| count.load(Relaxed) > 0), "the schedules miss what they are for: {SEEN:?}");
}

#[test]
fn every_planted_bug_is_found() {
    for (name, run) in FLAWS {
        let found = catch_unwind(|| {
            // Some bugs show under one kind of schedule only.
            for round in 0..ROUNDS {
                let (silent, few) = (FailurePersistence::None, SCHEDULES / ROUNDS);
                explore(RandomScheduler::new_from_seed(2 * round as u64, few), silent.clone(), run);
                explore(PctScheduler::new_from_seed(2 * round as u64 + 1, CHANGES, few), silent, run);
            }
        });
        let found = found.expect_err(&format!("nothing was found wrong with workers that have the bug {name}"));
        let told = found.downcast_ref::<String>().map_or("", String::as_str);
        let is_verdict = ["deadlock!", "exceeded max_steps", "item ", "worker ", "commits ", "who ends"];
        assert!(is_verdict.iter().any(|verdict| told.contains(verdict)), "{name}: the checker itself failed: {told}");
    }
}

/// Items 1 and 2 in the hands of workers 0 and 1, nothing else to take.
fn two_running() -> Crew {
    let crew = Crew::new(1, 2, Pace { narrow: 2, wide: 2, run_length: 2 }, false);
    assert_eq!(crew.schedule.claim(3, 2), 1..3);
    for index in 1..3 {
        assert_eq!(crew.schedule.start(index, State::Ready, index - 1), Some(0));
    }
    crew
}

fn claim_if_parked(schedule: &Schedule, index: usize, is_parked: bool) {
    if is_parked {
        assert_eq!(schedule.claim_retry(1), Some((index, 0)), "who was parked may run");
    }
    assert_eq!(schedule.state(index), State::Running);
}

#[test]
fn who_parks_while_the_writer_finishes_goes_on_or_runs_again() {
    exhaust(|| {
        let crew = Arc::new(two_running());
        let writer = thread::spawn({
            let crew = crew.clone();
            move || crew.finish(1, 0, 0)
        });
        let is_parked = crew.schedule.block(2, 1, 1);
        writer.join().expect("it does not panic");
        claim_if_parked(&crew.schedule, 2, is_parked);
    });
}

#[test]
fn who_parks_behind_what_one_worker_commits_alone_goes_on_or_runs_again() {
    exhaust(|| {
        let schedule = Arc::new(Schedule::new(1, 2));
        schedule.skip_to(3);
        assert_eq!(schedule.start(2, State::Ready, 1), Some(0));
        let committer = thread::spawn({
            let schedule = schedule.clone();
            move || schedule.commit(1)
        });
        let is_parked = schedule.block(2, 1, 1);
        committer.join().expect("it does not panic");
        claim_if_parked(&schedule, 2, is_parked);
    });
}

#[test]
fn an_item_that_two_workers_want_goes_to_one() {
    exhaust(|| {
        let schedule = Arc::new(Schedule::new(1, 2));
        // A new waiter must not keep both from it.
        assert_eq!(schedule.start(2, State::Ready, 2), Some(0));
        let want = |worker: usize| {
            let schedule = schedule.clone();
            move || usize::from(schedule.start(1, State::Ready, worker).is_some())
        };
        let (one, other) = (thread::spawn(want(0)), thread::spawn(want(1)));
        assert!(schedule.block(2, 1, 2));
        let got = one.join().expect("it does not panic") + other.join().expect("it does not panic");
        assert_eq!(got, 1);
    });
}

#[test]
fn who_lies_down_while_the_last_reason_to_wake_comes_up_does_not_sleep_through_it() {
    exhaust(|| {
        let crew = Arc::new(two_running());
        assert!(crew.schedule.block(2, 1, 1));
        let sleeper = thread::spawn({
            let crew = crew.clone();
            move || crew.rest()
        });
        crew.finish(1, 0, 0);
        sleeper.join().expect("it does not panic");
    });
    exhaust(|| {
        let crew = Arc::new(two_running());
        let sleeper = thread::spawn({
            let crew = crew.clone();
            move || crew.rest()
        });
        crew.stop();
        sleeper.join().expect("it does not panic");
    });
}

#[test]
#[ignore = "runs one schedule of blocks_end_in_order_whatever_the_schedule again, from the file SHARDYARD_SCHEDULE"]
fn a_schedule_again() {
    let path = std::env::var("SHARDYARD_SCHEDULE").expect("SHARDYARD_SCHEDULE names the file with the schedule");
    explore(ReplayScheduler::new_from_file(path).expect("the file can be read"), FailurePersistence::None, run_any);
}
