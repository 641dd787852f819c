//! Who was at a location during a window of lanes, and from which item on that makes a difference.
//!
//! The tasks of a window run side by side on the state before it. An item of one task is wrong if a task other than its own
//! changed, at a lower index, what it looked at, or changed it, at any index, before it looked. Of each location only the
//! two lowest indices of visits and of changes, by different tasks, are kept: they give the lowest item that can be wrong.

/// A task comes to a location at this item, or looks there ahead for it; both counted within the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visit {
    /// Numbers windows from 1 on; marks of another window count for nothing.
    pub window: u32,
    pub task: u16,
    pub index: u16,
}

/// Two items of different tasks that cannot both be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clash {
    /// The lowest item that may be wrong.
    pub from: u16,
    pub reader: u16,
    pub writer: u16,
}

const NEVER: u16 = u16::MAX;

#[derive(Debug, Clone, Copy)]
struct Mark {
    index: u16,
    task: u16,
}

const NONE: Mark = Mark { index: NEVER, task: NEVER };

/// The two lowest indices, of different tasks.
#[derive(Debug, Clone, Copy)]
struct Lowest([Mark; 2]);

impl Lowest {
    fn add(&mut self, index: u16, task: u16) {
        let [first, second] = &mut self.0;
        if task == first.task {
            first.index = first.index.min(index);
        } else if index < first.index {
            *second = *first;
            *first = Mark { index, task };
        } else if task == second.task || index < second.index {
            let index = if task == second.task { second.index.min(index) } else { index };
            *second = Mark { index, task };
        }
    }
}

#[derive(Debug)]
pub struct Marks {
    window: u32,
    touches: Lowest,
    writes: Lowest,
}

impl Default for Marks {
    fn default() -> Self {
        Self { window: 0, touches: Lowest([NONE; 2]), writes: Lowest([NONE; 2]) }
    }
}

impl Marks {
    pub fn touch(&mut self, visit: Visit) -> Option<Clash> {
        self.enter(visit.window);
        let other = self.writer_beside(visit.task);
        self.touches.add(visit.index, visit.task);
        match other {
            // What another task wrote lies there already, whichever of the two comes first in order.
            Some(write) => {
                let own = Clash { from: visit.index, reader: visit.index, writer: write.index };
                Some(self.clash().filter(|clash| clash.from < own.from).unwrap_or(own))
            }
            None => self.clash(),
        }
    }

    /// Whether a task other than this one changed the location in this window.
    pub fn is_written_beside(&self, visit: Visit) -> bool {
        self.window == visit.window && self.writer_beside(visit.task).is_some()
    }

    fn writer_beside(&self, task: u16) -> Option<Mark> {
        self.writes.0.iter().find(|write| write.index != NEVER && write.task != task).copied()
    }

    /// A change counts as a visit too: of a new account nothing is read before it is written.
    pub fn write(&mut self, visit: Visit) -> Option<Clash> {
        self.enter(visit.window);
        self.touches.add(visit.index, visit.task);
        self.writes.add(visit.index, visit.task);
        self.clash()
    }

    fn enter(&mut self, window: u32) {
        if self.window != window {
            *self = Self { window, ..Self::default() };
        }
    }

    fn clash(&self) -> Option<Clash> {
        if self.writes.0[0].index == NEVER {
            return None;
        }
        let pairs = self.touches.0.iter().flat_map(|touch| self.writes.0.iter().map(move |write| (touch, write)));
        let met =
            pairs.filter(|(touch, write)| touch.index != NEVER && write.index != NEVER && touch.task != write.task);
        let clashes = met.map(|(touch, write)| Clash {
            from: touch.index.max(write.index + 1),
            reader: touch.index,
            writer: write.index,
        });
        clashes.min_by_key(|clash| clash.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the marks say after these visits: (task, index, whether it writes).
    fn from(visits: &[(u16, u16, bool)]) -> Option<u16> {
        let mut marks = Marks::default();
        let mut lowest: Option<u16> = None;
        for (task, index, is_write) in visits {
            let visit = Visit { window: 3, task: *task, index: *index };
            let found = if *is_write { marks.write(visit) } else { marks.touch(visit) };
            lowest = lowest.into_iter().chain(found.map(|clash| clash.from)).min();
        }
        lowest
    }

    #[test]
    fn looking_alone_never_clashes() {
        assert_eq!(from(&[(1, 5, false), (2, 6, false), (3, 1, false)]), None);
        assert_eq!(from(&[(1, 5, false), (1, 6, true), (1, 9, true)]), None);
    }

    #[test]
    fn the_lowest_item_that_may_be_wrong_is_found_in_whatever_order_tasks_come() {
        assert_eq!(from(&[(1, 5, true), (2, 9, false)]), Some(9));
        assert_eq!(from(&[(2, 9, false), (1, 5, true)]), Some(9));
        // What looked before the change is right; the same task may look again right after it.
        assert_eq!(from(&[(2, 3, false), (1, 5, true)]), Some(6));
        // What looks after it has seen it, and should not have.
        assert_eq!(from(&[(1, 5, true), (2, 3, false)]), Some(3));
        assert_eq!(from(&[(1, 5, true), (2, 9, true), (3, 7, true)]), Some(7));
    }

    #[test]
    fn two_marks_suffice_for_any_number_of_tasks() {
        let mut dice = 7_u64;
        let mut roll = |sides: u64| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) % sides
        };
        for _ in 0..2000 {
            let visits: Vec<(u16, u16, bool)> =
                (0..1 + roll(9)).map(|_| (roll(4) as u16, roll(30) as u16, roll(3) == 0)).collect();
            let all = || visits.iter().enumerate();
            let pairs = all().flat_map(|a| all().map(move |b| (a, b)));
            let clashes = pairs.filter(|((_, a), (_, b))| a.0 != b.0 && b.2);
            let expected = clashes.map(|((at, a), (before, b))| match (at > before, a.2) {
                (true, false) => a.1,
                _ => a.1.max(b.1 + 1),
            });
            assert_eq!(from(&visits), expected.min(), "{visits:?}");
        }
    }

    #[test]
    fn marks_of_another_window_are_forgotten() {
        let mut marks = Marks::default();
        assert_eq!(marks.write(Visit { window: 1, task: 1, index: 5 }), None);
        assert_eq!(marks.touch(Visit { window: 2, task: 2, index: 9 }), None);
    }
}
