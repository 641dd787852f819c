//! The workers of a block's lanes: one leads, the others wait for what it hands out, and nobody spins.
//!
//! What is handed out is taken piece by piece, and the leader takes pieces like everybody: a helper that is busy elsewhere, or
//! has no core, is not waited for. A journal cannot change threads, so a worker keeps its own as long as the team lasts.
//!
//! Two workers keep to cores of their own while their team lasts. Left to itself the kernel moves whoever wakes, be it from a
//! lock, to the core of the one that woke it, if the other core looks taken; and of a virtual machine's cores those that are
//! idle do. There the two wait for each other's time slices. Of more workers, each is only woken elsewhere.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{guard, lock};
use crate::error::{CoreError, Result};
use crate::seats::{leave, rest, settle, spread};

struct Orders<T> {
    /// Counts what was handed out.
    number: u64,
    /// What may be begun.
    task: Option<Arc<T>>,
    /// Helpers that have begun it and not ended.
    busy: usize,
    /// A helper's, or its panic.
    error: Option<CoreError>,
    is_dismissed: bool,
}

pub struct Team<T> {
    orders: Mutex<Orders<T>>,
    is_pair: bool,
    to_helpers: Condvar,
    to_leader: Condvar,
}

impl<T> Team<T> {
    pub fn new(helpers: usize) -> Self {
        let orders = Orders { number: 0, task: None, busy: 0, error: None, is_dismissed: false };
        let is_pair = helpers == 1;
        Self { orders: Mutex::new(orders), is_pair, to_helpers: Condvar::new(), to_leader: Condvar::new() }
    }

    /// The caller is about to sleep.
    fn lie_down(&self) {
        // Of two, who sleeps on another core is kept from that of who wakes it all the same.
        if self.is_pair { leave() } else { rest() }
    }

    /// The caller has woken.
    fn get_up(&self) {
        if !self.is_pair {
            settle();
        }
    }

    /// The caller works by itself for long, and may run anywhere.
    pub fn stand_free(&self) {
        settle();
    }

    /// A helper's life: does its part of the tasks that it comes in time for, until the leader goes.
    pub fn serve(&self, mut part: impl FnMut(&T) -> Result<()>) {
        let mut seen = 0;
        loop {
            self.lie_down();
            let orders = lock(&self.orders);
            let is_idle =
                |orders: &mut Orders<T>| (orders.task.is_none() || orders.number == seen) && !orders.is_dismissed;
            let mut orders = self.to_helpers.wait_while(orders, is_idle).unwrap_or_else(PoisonError::into_inner);
            self.get_up();
            let Some(task) = orders.task.clone().filter(|_| orders.number > seen) else { return settle() };
            seen = orders.number;
            orders.busy += 1;
            drop(orders);
            if self.is_pair {
                spread();
            }
            let ended = guard(|| part(&task)).and_then(|ended| ended);
            drop(task);
            let mut orders = lock(&self.orders);
            orders.busy -= 1;
            if let Err(error) = ended {
                orders.error.get_or_insert(error);
            }
            if orders.busy == 0 {
                spread();
                self.to_leader.notify_one();
            }
        }
    }

    /// Has everybody do their part of a task, and does the leader's own meanwhile, after which nothing of it may be left to
    /// begin; returns when all that began have ended.
    ///
    /// # Errors
    /// The leader's own: what it does beside its part belongs to items before; a helper's else, `Internal` when it panicked.
    pub fn share<R>(&self, task: &Arc<T>, own: impl FnOnce() -> Result<R>) -> Result<R> {
        self.hand_out(task, false, own)
    }

    /// As `share`, for the last task: whoever has done their part goes, and is not woken once more to be told so.
    ///
    /// # Errors
    /// Those of `share`.
    pub fn share_last<R>(&self, task: &Arc<T>, own: impl FnOnce() -> Result<R>) -> Result<R> {
        self.hand_out(task, true, own)
    }

    fn hand_out<R>(&self, task: &Arc<T>, is_last: bool, own: impl FnOnce() -> Result<R>) -> Result<R> {
        let mut orders = lock(&self.orders);
        orders.is_dismissed |= is_last;
        orders.number += 1;
        orders.task = Some(task.clone());
        drop(orders);
        if self.is_pair {
            // The helper may keep the leader from its core as well, which it does when it begins.
            leave();
        }
        spread();
        self.to_helpers.notify_all();
        let own = guard(own).and_then(|own| own);
        let is_busy = |orders: &mut Orders<T>| orders.busy > 0;
        self.lie_down();
        let mut orders = lock(&self.orders);
        orders.task = None;
        let mut orders = self.to_leader.wait_while(orders, is_busy).unwrap_or_else(PoisonError::into_inner);
        self.get_up();
        let error = orders.error.take();
        own.and_then(|own| error.map_or(Ok(own), Err))
    }

    /// Lets the helpers go, if any wait.
    pub fn dismiss(&self) {
        lock(&self.orders).is_dismissed = true;
        self.to_helpers.notify_all();
        self.stand_free();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

    use super::*;

    fn with_team<T: Send + Sync, R>(
        helpers: usize,
        part: impl Fn(&T) -> Result<()> + Sync,
        lead: impl FnOnce(&Team<T>) -> R,
    ) -> R {
        let team = Team::new(helpers);
        std::thread::scope(|scope| {
            (0..helpers).for_each(|_| drop(scope.spawn(|| team.serve(&part))));
            let led = lead(&team);
            team.dismiss();
            led
        })
    }

    /// A task of pieces, each to be taken once.
    struct Pieces {
        next: AtomicU32,
        taken: AtomicU32,
        is_over: AtomicBool,
    }

    impl Pieces {
        fn new() -> Self {
            Self { next: AtomicU32::new(0), taken: AtomicU32::new(0), is_over: AtomicBool::new(false) }
        }

        fn take(&self) -> Result<()> {
            while self.next.fetch_add(1, SeqCst) < 20 {
                assert!(!self.is_over.load(SeqCst), "a piece was taken when all was over");
                self.taken.fetch_add(1, SeqCst);
            }
            Ok(())
        }
    }

    #[test]
    fn every_piece_is_done_before_the_next_task_is_handed_out() {
        for _ in 0..20 {
            with_team(3, Pieces::take, |team| {
                for task in 1..=50 {
                    let pieces = Arc::new(Pieces::new());
                    let share = if task == 50 { Team::share_last } else { Team::share };
                    assert_eq!(share(team, &pieces, || pieces.take()), Ok(()));
                    assert_eq!(pieces.taken.load(SeqCst), 20);
                    pieces.is_over.store(true, SeqCst);
                }
            });
        }
    }

    #[test]
    fn a_helper_that_does_not_come_is_not_waited_for() {
        let team = Team::new(3);
        assert_eq!(team.share(&Arc::new(1), || Ok(7)), Ok(7));
        assert_eq!(team.share_last(&Arc::new(2), || Ok(8)), Ok(8));
        team.serve(|_| panic!("it came too late for both"));
    }

    #[test]
    fn a_part_that_panics_is_an_error_and_the_team_goes_on() {
        let begun = AtomicU32::new(0);
        let part = |task: &u32| {
            begun.fetch_add(1, SeqCst);
            assert!(*task != 2, "planted");
            Ok(())
        };
        let until_begun = || {
            while begun.load(SeqCst) == 0 {
                std::thread::yield_now();
            }
            begun.store(0, SeqCst);
        };
        with_team(1, part, |team| {
            let share = |task, own: Result<u32>| {
                team.share(&Arc::new(task), || {
                    until_begun();
                    own
                })
            };
            assert_eq!(share(1, Ok(7)), Ok(7));
            assert!(matches!(share(2, Ok(7)), Err(CoreError::Internal(_))));
            assert_eq!(share(3, Ok(7)), Ok(7));
            let own = CoreError::InvalidBlock("of an item before".into());
            assert_eq!(share(2, Err(own.clone())), Err(own));
            let failed: Result<()> = team.share(&Arc::new(3), || panic!("planted"));
            assert!(matches!(failed, Err(CoreError::Internal(_))));
        });
    }

    #[test]
    fn a_team_without_helpers_is_its_leader() {
        assert_eq!(with_team(0, |_: &u32| Ok(()), |team| team.share(&Arc::new(1), || Ok(1))), Ok(1));
    }
}
