//! Dividing a window of transactions into tasks that will likely not meet.
//!
//! Transactions are tied together by what can be known before they run: the sender, whoever they pay, addresses among
//! their input's words, and the contract they call if its callers were seen to clash. What is tied together runs in order
//! within one task. A tie too many costs parallelism, one too few a clash, neither the result: so ties go by hash, and
//! keys that collide are tied.

use std::hash::{BuildHasher, Hasher};
use std::ops::Range;

use alloy_primitives::{Address, TxKind};

use super::expect_transaction;
use super::habits::Known;
use crate::block::Block;
use crate::gateway::GATEWAY;
use crate::transaction::Transaction;

/// Words of input looked through for addresses.
const INPUT_WORDS: usize = 6;
/// A call is so much longer than a payment, about.
const CALL_WEIGHT: u32 = 5;
/// Tasks per worker: enough that the last one to end keeps nobody waiting for long.
const TASKS_PER_WORKER: u32 = 16;
const MIN_TASK_WEIGHT: u32 = 24;
/// Words of the table per transaction, of which most have two or three keys.
const WORDS_PER_ITEM: usize = 6;
const PROBES: usize = 4;
/// What dividing must promise to be worth it, over one worker alone.
const MIN_GAIN: f64 = 1.3;

/// A window divided.
#[derive(Debug)]
pub struct Plan {
    pub items: Range<usize>,
    /// The items task by task, in order within each.
    order: Vec<u32>,
    /// Heaviest first.
    tasks: Vec<Range<usize>>,
    /// By item.
    task_of: Vec<u32>,
    /// How much faster it can be than one worker, by weight.
    gain: f64,
}

impl Plan {
    pub fn pays(&self) -> bool {
        self.gain >= MIN_GAIN
    }

    pub fn count(&self) -> usize {
        self.tasks.len()
    }

    /// The items of a task, in order.
    pub fn task(&self, task: usize) -> &[u32] {
        &self.order[self.tasks[task].clone()]
    }

    pub fn task_of(&self, item: usize) -> usize {
        self.task_of[item - self.items.start] as usize
    }
}

/// Makes plans; keeps its tables between windows.
#[derive(Debug, Default)]
pub struct Planner {
    hasher: foldhash::fast::RandomState,
    /// 0 is free; else the upper half is part of a key's hash, the lower an item that has it, plus one.
    table: Vec<u64>,
    /// By item: another one tied to it, itself if it is the lowest.
    tied: Vec<u32>,
    weights: Vec<u32>,
}

impl Planner {
    /// Divides the transactions of `items` among `threads` workers.
    pub fn plan(&mut self, block: &Block<'_>, known: &Known, items: Range<usize>, threads: usize) -> Plan {
        let count = items.len();
        self.table.clear();
        self.table.resize((count * WORDS_PER_ITEM).next_power_of_two(), 0);
        self.tied.clear();
        self.tied.extend(0..count as u32);
        self.weights.clear();
        let first = items.start - block.receipts.len() - 1;
        for item in 0..count {
            expect_transaction(block, first + item);
            let transaction = block.batch.entries()[first + item].transaction.as_deref();
            let weight = transaction.map_or(1, |transaction| self.tie(item as u32, transaction, known));
            self.weights.push(weight);
        }
        self.divide(items, threads as u32)
    }

    /// Ties an item to those before it that have a key in common; its weight.
    fn tie(&mut self, item: u32, transaction: &Transaction, known: &Known) -> u32 {
        self.note(item, &transaction.sender);
        let TxKind::Call(to) = transaction.to else { return CALL_WEIGHT };
        let input = &transaction.input;
        // What a message carries leaves the gateway in the same transaction.
        let is_paid = !transaction.value.is_zero() && to != GATEWAY;
        if is_paid || input.is_empty() || known.is_contended(&to) {
            self.note(item, &to);
        }
        let words = input.get(4..).unwrap_or_default().as_chunks::<32>().0;
        for word in words.iter().take(INPUT_WORDS) {
            // Amounts are small numbers, addresses are not.
            if word[..12].iter().all(|byte| *byte == 0) && word[12..20].iter().any(|byte| *byte != 0) {
                self.note(item, &Address::from_slice(&word[12..]));
            }
        }
        if input.is_empty() { 1 } else { CALL_WEIGHT }
    }

    fn note(&mut self, item: u32, key: &Address) {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key.as_slice());
        let hash = hasher.finish();
        let (tag, mask) = (hash >> 32 << 32, self.table.len() - 1);
        let mut other = item;
        for probe in 0..PROBES {
            let word = &mut self.table[(hash as usize).wrapping_add(probe) & mask];
            if *word == 0 {
                *word = tag | u64::from(item + 1);
                return;
            }
            other = *word as u32 - 1;
            if *word >> 32 << 32 == tag {
                break;
            }
        }
        let (a, b) = (self.lowest(item), self.lowest(other));
        self.tied[a.max(b) as usize] = a.min(b);
    }

    /// The lowest item that this one is tied to.
    fn lowest(&mut self, mut item: u32) -> u32 {
        loop {
            let next = self.tied[item as usize];
            if next == item {
                return item;
            }
            self.tied[item as usize] = self.tied[next as usize];
            item = next;
        }
    }

    fn divide(&mut self, items: Range<usize>, threads: u32) -> Plan {
        let count = items.len();
        let mut group_weights = vec![0_u32; count];
        let (mut total, mut heaviest) = (0, 0);
        for item in 0..count as u32 {
            let group = self.lowest(item) as usize;
            group_weights[group] += self.weights[item as usize];
            total += self.weights[item as usize];
            heaviest = heaviest.max(group_weights[group]);
        }
        let gain = f64::from(total) / f64::from(heaviest.max(total.div_ceil(threads)).max(1));
        let target = (total / (threads * TASKS_PER_WORKER)).max(MIN_TASK_WEIGHT);
        // By group, then by item; small groups share the task that is open when they begin.
        let mut task_of = vec![u32::MAX; count];
        let mut loads: Vec<u32> = Vec::new();
        let mut open = None;
        for item in 0..count {
            let group = self.lowest(item as u32) as usize;
            if task_of[group] == u32::MAX {
                let weight = group_weights[group];
                let task = match open.filter(|_| weight < target) {
                    Some(task) => task,
                    None => {
                        loads.push(0);
                        loads.len() - 1
                    }
                };
                loads[task] += weight;
                if weight < target {
                    open = (loads[task] < target).then_some(task);
                }
                task_of[group] = task as u32;
            }
            task_of[item] = task_of[group];
        }
        Plan { order: Vec::new(), tasks: Vec::new(), task_of, gain, items }.with_order(&loads)
    }
}

impl Plan {
    fn with_order(mut self, loads: &[u32]) -> Self {
        // Tasks are renamed by weight, so that workers take the heaviest first.
        let mut by_weight: Vec<u32> = (0..loads.len() as u32).collect();
        by_weight.sort_by_key(|task| std::cmp::Reverse(loads[*task as usize]));
        let mut renamed = vec![0; loads.len()];
        by_weight.iter().enumerate().for_each(|(rank, task)| renamed[*task as usize] = rank as u32);
        let mut ends = vec![0; loads.len()];
        for task in &mut self.task_of {
            *task = renamed[*task as usize];
            ends[*task as usize] += 1;
        }
        let mut start = 0;
        for end in &mut ends {
            self.tasks.push(start..start + *end);
            start += *end;
            *end = start - *end;
        }
        self.order = vec![0; self.task_of.len()];
        for (item, task) in self.task_of.iter().enumerate() {
            let place = &mut ends[*task as usize];
            self.order[*place] = (self.items.start + item) as u32;
            *place += 1;
        }
        self
    }
}
