//! The workers of a block's lanes: one leads, the others wait for what it hands out, and nobody spins.
//!
//! A journal cannot change threads, so a worker keeps its own from the first window of a block to the last.
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
    task: Option<Arc<T>>,
    /// Helpers that have not ended the present task.
    busy: usize,
    /// A helper's, or its panic.
    error: Option<CoreError>,
    is_dismissed: bool,
}

pub struct Team<T> {
    orders: Mutex<Orders<T>>,
    helpers: usize,
    is_pair: bool,
    to_helpers: Condvar,
    to_leader: Condvar,
}

impl<T> Team<T> {
    pub fn new(helpers: usize) -> Self {
        let orders = Orders { number: 0, task: None, busy: 0, error: None, is_dismissed: false };
        let is_pair = helpers == 1;
        Self { orders: Mutex::new(orders), helpers, is_pair, to_helpers: Condvar::new(), to_leader: Condvar::new() }
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

    /// A helper's life: does its part of every task until the leader goes.
    pub fn serve(&self, mut part: impl FnMut(&T) -> Result<()>) {
        let mut seen = 0;
        loop {
            self.lie_down();
            let orders = lock(&self.orders);
            let is_idle = |orders: &mut Orders<T>| orders.number == seen && !orders.is_dismissed;
            let orders = self.to_helpers.wait_while(orders, is_idle).unwrap_or_else(PoisonError::into_inner);
            self.get_up();
            let Some(task) = orders.task.clone().filter(|_| orders.number > seen) else { return settle() };
            seen = orders.number;
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

    /// Has everybody do their part of a task, and does the leader's own meanwhile; returns when all have ended.
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
        orders.busy = self.helpers;
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
        let orders = lock(&self.orders);
        let mut orders = self.to_leader.wait_while(orders, is_busy).unwrap_or_else(PoisonError::into_inner);
        self.get_up();
        orders.task = None;
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
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;

    fn with_team<R>(helpers: usize, part: impl Fn(&u32) -> Result<()> + Sync, lead: impl FnOnce(&Team<u32>) -> R) -> R {
        let team = Team::new(helpers);
        std::thread::scope(|scope| {
            (0..helpers).for_each(|_| drop(scope.spawn(|| team.serve(&part))));
            let led = lead(&team);
            team.dismiss();
            led
        })
    }

    #[test]
    fn everybody_does_their_part_of_every_task_before_the_next_is_handed_out() {
        let sum = AtomicU32::new(0);
        with_team(
            3,
            |task| {
                sum.fetch_add(*task, SeqCst);
                Ok(())
            },
            |team| {
                for task in 1..=500 {
                    let before = sum.load(SeqCst);
                    team.share(&Arc::new(task), || Ok(())).expect("no part fails");
                    assert_eq!(sum.load(SeqCst), before + 3 * task);
                }
            },
        );
    }

    #[test]
    fn a_part_that_panics_is_an_error_and_the_team_goes_on() {
        let part = |task: &u32| {
            assert!(*task != 2, "planted");
            Ok(())
        };
        with_team(2, part, |team| {
            assert_eq!(team.share(&Arc::new(1), || Ok(7)), Ok(7));
            assert!(matches!(team.share(&Arc::new(2), || Ok(7)), Err(CoreError::Internal(_))));
            assert_eq!(team.share(&Arc::new(3), || Ok(7)), Ok(7));
            let own = CoreError::InvalidBlock("of an item before".into());
            assert_eq!(team.share(&Arc::new(2), || Err::<(), _>(own.clone())), Err(own));
            let failed: Result<()> = team.share(&Arc::new(3), || panic!("planted"));
            assert!(matches!(failed, Err(CoreError::Internal(_))));
        });
    }

    #[test]
    fn the_last_task_is_done_by_everybody_before_they_go() {
        for _ in 0..200 {
            let sum = AtomicU32::new(0);
            let part = |task: &u32| {
                sum.fetch_add(*task, SeqCst);
                Ok(())
            };
            with_team(3, part, |team| {
                team.share(&Arc::new(1), || Ok(())).expect("no part fails");
                assert_eq!(team.share_last(&Arc::new(10), || Ok(7)), Ok(7));
                assert_eq!(sum.load(SeqCst), 33);
            });
        }
    }

    #[test]
    fn a_team_without_helpers_is_its_leader() {
        assert_eq!(with_team(0, |_| Ok(()), |team| team.share(&Arc::new(1), || Ok(1))), Ok(1));
    }
}
