//! Claims about the list made of a log: it is what was logged, said as plainly as possible.

use std::collections::BTreeMap;

use super::*;
use crate::access_list::{AccessList, AccountAccess, Changes, encode};
use crate::error::CoreError;
use crate::evm::Bytecode;

/// Numbered keys, each with a value before the block.
struct World(Vec<(Key, Value)>);

impl Places for World {
    fn count(&self) -> u32 {
        self.0.len() as u32
    }

    fn key(&self, location: u32) -> Key {
        self.0[location as usize].0
    }

    fn find(&self, address: &Address) -> Result<Option<u32>> {
        Ok(self.0.iter().position(|(key, _)| *key == Key::Account(*address)).map(|place| place as u32))
    }

    fn parent(&self, location: u32) -> Result<Value> {
        Ok(self.0[location as usize].1)
    }

    fn parent_account(&self, address: &Address) -> Result<Option<Account>> {
        match self.find(address)?.map(|place| self.0[place as usize].1) {
            Some(Value::Account(account)) => Ok(account),
            _ => Ok(None),
        }
    }

    fn code(&self, hash: &B256) -> Result<Bytecode> {
        Err(CoreError::Internal(format!("code {hash} is not held")))
    }
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn account(nonce: u64, balance: u64) -> Value {
    let account = Account { nonce, balance: U256::from(balance), ..Account::default() };
    Value::Account(Some(account).filter(|account| !account.is_empty()))
}

/// Addresses of which many begin alike, each with slots of which many begin alike.
fn world(dice: &mut Dice) -> World {
    let mut keys = BTreeMap::new();
    for _ in 0..60 {
        let mut address = Address::repeat_byte(dice.roll(3) as u8);
        address[[9, 18][dice.roll(2) as usize]] = dice.roll(3) as u8;
        keys.insert(order(&Key::Account(address)), Key::Account(address));
        for _ in 0..dice.roll(40) {
            let slot = U256::from(dice.roll(50)) << if dice.roll(2) == 0 { 0 } else { 200 };
            keys.insert(order(&Key::Slot(address, slot)), Key::Slot(address, slot));
        }
    }
    let mut keys: Vec<Key> = keys.into_values().collect();
    (1..keys.len()).for_each(|place| keys.swap(place, dice.roll(place as u64 + 1) as usize));
    let before = |key: Key| match key {
        Key::Account(address) if address[18] == 1 => {
            let account = Account { code_hash: B256::repeat_byte(7), ..Account::default() };
            (key, Value::Account(Some(account)))
        }
        Key::Account(_) => (key, account(0, 5)),
        Key::Slot(..) => (key, Value::Slot(U256::from(2))),
    };
    World(keys.into_iter().map(before).collect())
}

fn order(key: &Key) -> (Address, Option<U256>) {
    match key {
        Key::Account(address) => (*address, None),
        Key::Slot(address, slot) => (*address, Some(*slot)),
    }
}

/// Changes in no order but for those of one index at one location; some put back what was there.
fn log(dice: &mut Dice, world: &World) -> AccessLog {
    let mut log = AccessLog::default();
    for _ in 0..dice.roll(5) + 1 {
        let (mut changes, mut touched) = (Vec::new(), Vec::new());
        for location in 0..world.count() {
            if dice.roll(3) == 0 {
                touched.push(location);
            }
            for _ in 0..dice.roll(4).saturating_sub(1) {
                let value = match world.0[location as usize] {
                    (_, Value::Account(before)) => match account(dice.roll(2), 4 + dice.roll(3)) {
                        Value::Account(Some(after)) => {
                            let code_hash = before.unwrap_or_default().code_hash;
                            Value::Account(Some(Account { code_hash, ..after }))
                        }
                        other => other,
                    },
                    _ => Value::Slot(U256::from(dice.roll(3) + 1)),
                };
                changes.push(Change { index: dice.roll(6) as u32, location, value });
            }
        }
        log.add(touched.into_iter(), changes);
    }
    log
}

/// The states of a field by index, as the last change of each index leaves it, without those that change nothing.
fn net<T: PartialEq + Copy>(before: T, values: Vec<(u32, T)>) -> Changes<T> {
    let by_index: BTreeMap<u32, T> = values.into_iter().collect();
    let mut present = before;
    by_index.into_iter().filter(|(_, value)| std::mem::replace(&mut present, *value) != *value).collect()
}

/// What the list must be, said as plainly as possible.
fn expected(world: &World, log: &AccessLog) -> AccessList {
    let mut accounts: BTreeMap<Address, AccountAccess> = BTreeMap::new();
    let mut places: Vec<usize> = (0..world.0.len()).collect();
    places.sort_by_key(|place| order(&world.0[*place].0));
    for place in places {
        let is_here = |location: &u32| *location as usize == place;
        let is_touched = log.touched.iter().flatten().any(&is_here);
        let changes: Vec<&Change> = log.changes.iter().flatten().filter(|change| is_here(&change.location)).collect();
        let (key, before) = world.0[place];
        let (Key::Account(address) | Key::Slot(address, _)) = key;
        let known = accounts.remove(&address);
        let was_listed = known.is_some();
        let mut access = known.unwrap_or(AccountAccess { address, ..AccountAccess::default() });
        match (key, before) {
            (Key::Slot(_, slot), Value::Slot(before)) => {
                let word = |change: &&Change| match change.value {
                    Value::Slot(word) => (change.index, word),
                    Value::Account(_) => panic!("a slot holds a word"),
                };
                let values = net(before, changes.iter().map(word).collect());
                let has_code = matches!(world.parent_account(&address), Ok(Some(found)) if found.has_code());
                if !values.is_empty() {
                    access.storage_changes.push((slot, values));
                } else if is_touched && has_code {
                    access.storage_reads.push(slot);
                }
            }
            (Key::Account(_), Value::Account(before)) => {
                let before = before.unwrap_or_default();
                let after = |change: &&Change| match change.value {
                    Value::Account(account) => (change.index, account.unwrap_or_default()),
                    Value::Slot(_) => panic!("an account holds an account"),
                };
                let after: Vec<(u32, Account)> = changes.iter().map(after).collect();
                access.balance_changes =
                    net(before.balance, after.iter().map(|(index, account)| (*index, account.balance)).collect());
                access.nonce_changes =
                    net(before.nonce, after.iter().map(|(index, account)| (*index, account.nonce)).collect());
            }
            _ => panic!("a location keeps its kind"),
        }
        if is_touched || access.has_changes() || was_listed {
            accounts.insert(address, access);
        }
    }
    AccessList { accounts: accounts.into_values().collect() }
}

#[test]
fn the_list_is_what_was_logged_however_it_was_logged() {
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let world = world(&mut dice);
        let log = log(&mut dice, &world);
        let expected = expected(&world, &log);
        let found = build(&log, &world, Address::repeat_byte(0xee), false).expect("nothing fails");
        assert_eq!(crate::access_list::decode(&found, 9, false).expect("canonical"), expected, "seed {seed}");
        assert_eq!(found, encode(&expected));
        let workers = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads");
        let shared = workers.install(|| build(&log, &world, Address::repeat_byte(0xee), true));
        assert_eq!(shared.expect("nothing fails"), found, "seed {seed}");
    }
}

#[test]
fn fees_stand_at_the_index_that_pays_them() {
    let address = Address::repeat_byte(1);
    let world = World(vec![(Key::Account(address), account(0, 5))]);
    let mut log = AccessLog::default();
    log.owe(1, U256::from(3));
    // It has all its fees when it changes itself.
    log.note(std::iter::empty(), std::iter::once(Change { index: 2, location: 0, value: account(1, 7) }));
    log.owe(2, U256::ZERO);
    log.owe(3, U256::from(4));
    let found = build(&log, &world, address, false).expect("nothing fails");
    let balances = [(1, 8), (2, 7), (3, 11)].map(|(index, balance)| (index, U256::from(balance)));
    let account = AccountAccess {
        address,
        balance_changes: balances.into_iter().collect(),
        nonce_changes: smallvec::smallvec![(2, 1)],
        ..AccountAccess::default()
    };
    assert_eq!(found, encode(&AccessList { accounts: vec![account] }));
}
