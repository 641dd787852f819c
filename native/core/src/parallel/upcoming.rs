//! What was found of the accounts that the next items send from and pay, when they were visited ahead.

use alloy_primitives::Address;

/// Accounts of one item: who sends, and who is paid.
const OF_ITEM: usize = 2;

/// In the order of the items, with how many are past.
#[derive(Debug)]
pub struct Upcoming<T> {
    visits: Vec<(u32, Address, T)>,
    past: usize,
}

impl<T> Default for Upcoming<T> {
    fn default() -> Self {
        Self { visits: Vec::new(), past: 0 }
    }
}

impl<T: Copy> Upcoming<T> {
    pub fn clear(&mut self) {
        self.visits.clear();
        self.past = 0;
    }

    /// Item `index` will come to this account, where it will find what was found now.
    pub fn push(&mut self, index: u32, address: Address, found: T) {
        self.visits.push((index, address, found));
    }

    pub fn come_to(&mut self, index: u32) {
        let ahead = self.visits.iter().skip(self.past);
        self.past += ahead.take_while(|(visitor, ..)| *visitor < index).count();
    }

    /// What was found for the present item. What was found for another does not count: who looks at it is this one, and marks
    /// would say that it was the other.
    pub fn recall(&self, index: u32, address: &Address) -> Option<T> {
        let mut own = self.visits.iter().skip(self.past).take(OF_ITEM);
        own.find(|(visitor, visited, _)| *visitor == index && visited == address).map(|(.., found)| *found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_found_for_the_item_itself_counts() {
        let account = Address::repeat_byte;
        let mut upcoming = Upcoming::default();
        for (index, address, found) in [(3, 1, 'a'), (4, 2, 'b'), (4, 1, 'c'), (7, 3, 'd')] {
            upcoming.push(index, account(address), found);
        }
        let mut recall = |index: u32, address: u8| {
            upcoming.come_to(index);
            upcoming.recall(index, &account(address))
        };
        assert_eq!([recall(3, 1), recall(3, 2), recall(3, 9)], [Some('a'), None, None]);
        assert_eq!([recall(4, 1), recall(4, 2), recall(4, 3)], [Some('c'), Some('b'), None]);
        // Items between were not visited for.
        assert_eq!([recall(6, 3), recall(7, 3), recall(9, 3)], [None, Some('d'), None]);
        upcoming.clear();
        upcoming.come_to(3);
        assert_eq!(upcoming.recall(3, &account(1)), None);
    }
}
