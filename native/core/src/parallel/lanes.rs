//! Windows of transactions, divided into tasks that run side by side, each on a journal of its own.
//!
//! A window is planned, its tasks run on the state before it, and marks at the locations tell from which item on somebody
//! may have missed a change of another task. What lies before is committed, in order; the rest runs again, alone,
//! speculated, or by the block's access list if that came with it. A window that holds costs little more than executing it
//! in order on one journal, divided by the workers.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256};

use super::committer::Committer;
use super::lane::{Lane, Ran, Shared, Trail, WARMED, make_room};
use super::memory::{Replaced, Stamp};
use super::plan::{Plan, Planner};
use super::replay::run_listed;
use super::speculation::speculate;
use super::team::Team;
use super::{Run, guard, lock, sum_gas_limits};
use crate::access_list::Change;
use crate::error::{CoreError, Result};
use crate::evm::NotExecuted;
use crate::gateway::{GATEWAY, MAX_OUTBOX_BYTES};
use crate::ledger::Done;
use crate::outbox::weigh;
use crate::pool::lead;

/// Fewer items than this are not worth waking anybody.
const MIN_ITEMS: usize = 48;
/// Items of a window that is planned while everybody waits for it.
const AWAITED: usize = 1024;
/// Items that one worker runs when a window cannot be made.
const ALONE_ITEMS: usize = 64;
/// Items run alone per item of a window that broke: what the next one stakes has then been earned.
const PENANCE: usize = 4;

/// A plan that does not pay has one worker run so many times its items alone, twice as many each time.
const MOST_UNPAID: u32 = 4;

/// For fewer items than this nobody who helps is let go.
const LONG_ALONE: usize = 512;

/// For fewer items than this a block's access list is not worth reading.
const LEAST_LISTED: usize = 256;

/// So many workers gain less by speculating, item by item, than one gains by going alone.
const FEW_WORKERS: usize = 2;

type Results = Vec<(u32, Result<Done, NotExecuted>)>;

/// What one task left.
#[derive(Default)]
struct Left {
    results: Results,
    trail: Trail,
    replaced: Replaced,
    has_messages: bool,
    took: Duration,
}

/// A window at work.
struct Window<'r, 'a> {
    run: &'r Run<'a>,
    plan: Plan,
    shared: Arc<Shared>,
    next: AtomicUsize,
    left: Vec<Mutex<Left>>,
}

/// What the team does together.
enum Together<'r, 'a> {
    Run(Arc<Window<'r, 'a>>),
    /// Of a window that broke.
    TakeBack(Arc<Window<'r, 'a>>),
    WriteAnew(Arc<Window<'r, 'a>>, usize),
    /// The block's changes, when all is done.
    Gather(&'r Run<'a>),
}

/// How far the lanes of a block came.
enum Came<'a> {
    ToTheEnd,
    /// A window comes next that others are to help with.
    Together,
    /// One worker goes on alone for long, and the others are free.
    Apart,
    /// Up to this item speculation is to go on.
    Until(usize),
    /// The rest is better run by this access list.
    Listed(&'a [u8]),
}

/// Executes and commits all transactions. Runs on one of the block's workers. The others help where that pays, if they are
/// free, and are so for whatever else their pool is given the rest of the time.
///
/// # Errors
/// Those of executing in order, for the same item.
pub fn execute_in_lanes(run: &Run<'_>) -> Result<()> {
    run.block.between.habits.lock().begin_block();
    let mut leader = Leader::new(run);
    loop {
        let came = match leader.lead()? {
            Came::Together => leader.lead_team()?,
            came => came,
        };
        match came {
            Came::ToTheEnd => return Ok(()),
            Came::Together | Came::Apart => {}
            Came::Until(item) => {
                speculate(run, run.committed.load(SeqCst), item)?;
                leader.begin();
            }
            Came::Listed(given) => return run_listed(run, given, run.last),
        }
    }
}

fn help<'a>(lane: &mut Lane<'a>, task: &Together<'_, 'a>) -> Result<()> {
    match task {
        Together::Run(window) => window.help(lane),
        Together::TakeBack(window) => {
            window.take_back();
            Ok(())
        }
        Together::WriteAnew(window, limit) => window.write_anew(*limit),
        Together::Gather(run) => run.gather(),
    }
}

/// The worker that plans, and commits.
struct Leader<'r, 'a> {
    run: &'r Run<'a>,
    /// Those who help, while they do.
    team: Option<Arc<Team<Together<'r, 'a>>>>,
    lane: Lane<'a>,
    planner: Planner,
    /// One past the last item whose changes are settled.
    next: usize,
    /// A window that is settled and not accounted for.
    settled: Option<Settled<'r, 'a>>,
    /// The window after the present one, should that hold.
    planned: Option<Plan>,
    /// So far one worker goes alone next.
    alone_until: usize,
    /// All that the batch may use finds room, so nobody has to add up.
    surely_fits: bool,
    /// The first item that was not committed when this began, and the gas limits of those from there on before each.
    first: usize,
    reserved: Vec<u64>,
    /// Plans in a row that would not have paid: what comes next is likely alike, and planning is work too.
    unpaid: u32,
}

struct Settled<'r, 'a> {
    window: Arc<Window<'r, 'a>>,
    results: Vec<Results>,
    limit: usize,
}

impl<'r, 'a> Leader<'r, 'a> {
    fn new(run: &'r Run<'a>) -> Self {
        let mut leader = Self {
            run,
            team: None,
            lane: Lane::new(run.block, &run.memory),
            planner: Planner::default(),
            next: 0,
            settled: None,
            planned: None,
            alone_until: 0,
            surely_fits: false,
            first: 0,
            reserved: Vec::new(),
            unpaid: 0,
        };
        leader.begin();
        leader
    }

    /// Goes on after what is committed.
    fn begin(&mut self) {
        let run = self.run;
        let room = run.block.env.gas_limit.saturating_sub(run.gas_used.load(SeqCst));
        self.surely_fits = run.block.batch.gas_limits() <= room;
        self.next = run.committed.load(SeqCst);
        (self.first, self.reserved) = (self.next, vec![0]);
    }

    /// As `lead`, with whoever of the other workers comes.
    fn lead_team(&mut self) -> Result<Came<'a>> {
        let run = self.run;
        let helpers = run.block.chain.threads - 1;
        let team = Arc::new(Team::new(helpers));
        self.team = Some(team.clone());
        let serve = || {
            // Whatever happens the leader is told.
            let mut lane = guard(|| Lane::new(run.block, &run.memory));
            team.serve(|task| {
                let _shift = run.time.begin();
                help(lane.as_mut().map_err(|error| error.clone())?, task)
            });
        };
        let led = lead(helpers, serve, || {
            let led = guard(|| self.lead());
            team.dismiss();
            led
        });
        self.team = None;
        led.and_then(|came| came)
    }

    fn lead(&mut self) -> Result<Came<'a>> {
        let run = self.run;
        while self.next <= run.last {
            if self.next < self.alone_until {
                if self.alone_until - self.next >= LONG_ALONE && self.team.is_some() {
                    self.account()?;
                    return Ok(Came::Apart);
                }
                self.run_alone()?;
                continue;
            }
            let plan = match self.planned.take() {
                Some(plan) => Some(plan),
                None => {
                    self.account()?;
                    self.plan(self.next, AWAITED)
                }
            };
            let Some(plan) = plan else {
                if let Some(given) = self.given() {
                    return Ok(Came::Listed(given));
                }
                self.go_alone(ALONE_ITEMS);
                continue;
            };
            let items = plan.items.clone();
            if !plan.pays() {
                if let Some(given) = self.given() {
                    return Ok(Came::Listed(given));
                }
                self.go_alone(items.len() << self.unpaid);
                self.unpaid = (self.unpaid + 1).min(MOST_UNPAID);
                continue;
            }
            self.unpaid = 0;
            let Some(team) = self.team.clone() else {
                self.planned = Some(plan);
                return Ok(Came::Together);
            };
            self.run_window(&team, plan)?;
            if self.next < items.end {
                self.planned = None;
                self.account()?;
                if let Some(given) = self.given() {
                    return Ok(Came::Listed(given));
                }
                self.go_alone(PENANCE * items.len());
                if run.block.chain.threads > FEW_WORKERS {
                    let end = std::mem::take(&mut self.alone_until);
                    return Ok(Came::Until(end - 1));
                }
            }
        }
        self.account()?;
        if let Some(team) = self.team.clone() {
            // While everybody is awake.
            run.close()?;
            team.share_last(&Arc::new(Together::Gather(run)), || run.gather())?;
        }
        Ok(Came::ToTheEnd)
    }

    /// The block's access list, if it came with one and there is enough left to read it for.
    fn given(&self) -> Option<&'a [u8]> {
        self.run.given.filter(|_| self.run.last + 1 - self.next >= LEAST_LISTED)
    }

    /// A plan for at most so many items from `start` on: as many as surely fit into the block, up to one that only runs alone.
    fn plan(&mut self, start: usize, most: usize) -> Option<Plan> {
        let run = self.run;
        let habits = run.block.between.habits.lock();
        let end = (start + habits.window().min(most)).min(run.last + 1);
        let end = start + self.count_fitting(start, end);
        let first = run.block.receipts.len() + 1;
        let sets_code = |index: &usize| {
            let entry = &run.block.batch.entries()[index - first];
            entry.transaction.as_ref().is_some_and(|transaction| transaction.tx_type == 4)
        };
        let end = if run.block.batch.sets_code() { (start..end).find(sets_code).unwrap_or(end) } else { end };
        (end - start >= MIN_ITEMS).then(|| self.planner.plan(run.block, &habits, start..end, run.block.chain.threads))
    }

    /// How many of the items from `start` on surely fit into the block, whatever those before them that are not accounted
    /// for use.
    fn count_fitting(&mut self, start: usize, end: usize) -> usize {
        let run = self.run;
        if self.surely_fits {
            return end - start;
        }
        let room = run.block.env.gas_limit.saturating_sub(run.gas_used.load(SeqCst));
        sum_gas_limits(run.block, self.first, end, &mut self.reserved);
        let before = self.reserved[run.committed.load(SeqCst) - self.first];
        let sums = &self.reserved[start + 1 - self.first..=end - self.first];
        sums.partition_point(|sum| sum - before <= room)
    }

    /// One worker runs so many items next.
    fn go_alone(&mut self, items: usize) {
        self.alone_until = (self.next + items).min(self.run.last + 1);
    }

    fn run_alone(&mut self) -> Result<()> {
        self.account()?;
        let (run, end) = (self.run, self.alone_until);
        if let Some(team) = &self.team {
            team.stand_free();
        }
        let mut committer = lock(&run.committer);
        let began = Instant::now();
        committer.commit_alone(run, &mut self.lane, self.next..end)?;
        committer.add_alone(began.elapsed());
        committer.count_solo();
        run.advance(&committer, end);
        self.next = end;
        Ok(())
    }

    /// Runs a window and settles what holds of it. Meanwhile the one before is accounted for and the next one planned, so
    /// that nobody waits for either.
    fn run_window(&mut self, team: &Team<Together<'r, 'a>>, plan: Plan) -> Result<()> {
        let run = self.run;
        let end = plan.items.end;
        let left = (0..plan.count()).map(|_| Mutex::default()).collect();
        let shared = Arc::new(Shared::new(run.number_window(), &plan.items));
        let window = Arc::new(Window { run, plan, shared, next: AtomicUsize::new(0), left });
        team.share(&Arc::new(Together::Run(window.clone())), || {
            self.account()?;
            self.planned = self.plan(end, usize::MAX).filter(Plan::pays);
            window.help(&mut self.lane)
        })?;
        window.limit_messages(&lock(&run.committer));
        let limit = window.shared.limit();
        let results = window.take_results();
        if limit < end {
            window.rewind();
            team.share(&Arc::new(Together::TakeBack(window.clone())), || {
                window.take_back();
                Ok(())
            })?;
            window.rewind();
            team.share(&Arc::new(Together::WriteAnew(window.clone(), limit)), || window.write_anew(limit))?;
            window.learn()?;
        }
        window.keep_firsts();
        run.block.between.habits.lock().note_window(limit == end);
        self.next = limit;
        self.settled = Some(Settled { window, results, limit });
        Ok(())
    }

    /// Accounts for the window that was settled last, if that is not done yet. The next one may be writing meanwhile: of the
    /// state, accounting reads only what the protocol alone writes, where links stand.
    fn account(&mut self) -> Result<()> {
        let Some(Settled { window, results, limit }) = self.settled.take() else { return Ok(()) };
        window.commit(results, limit)?;
        window.log(&mut lock(&self.run.committer));
        Ok(())
    }
}

impl<'a> Window<'_, 'a> {
    /// One worker's part: task after task, until there is none left.
    fn help(&self, lane: &mut Lane<'a>) -> Result<()> {
        loop {
            let task = self.next.fetch_add(1, SeqCst);
            if task >= self.plan.count() {
                return Ok(());
            }
            let began = Instant::now();
            let mut left = lock(&self.left[task]);
            lane.stand_beside(&self.shared, task);
            self.run_task(lane, task, &mut left);
            std::mem::swap(&mut left.trail, lane.take_trail());
            self.write(task, &mut left)?;
            left.took = began.elapsed();
        }
    }

    fn run_task(&self, lane: &mut Lane<'a>, task: usize, left: &mut Left) {
        let block = self.run.block;
        let first = block.receipts.len() + 1;
        let items = self.plan.task(task);
        left.results.reserve(items.len());
        lane.make_room(items.len());
        for (nth, index) in items.iter().enumerate() {
            if nth % WARMED == 0 {
                let soon = items[nth..].iter().take(WARMED).map(|index| *index as usize);
                lane.warm(
                    soon.filter_map(|index| {
                        Some((index, block.batch.entries()[index - first].transaction.as_deref()?))
                    }),
                );
            }
            if *index as usize >= self.shared.limit() {
                break;
            }
            let place = *index as usize - first;
            let ran = match block.transaction(place) {
                // What fails here may only have seen what is not so; at its turn the item tells.
                Ok(transaction) => lane.run(*index as usize, transaction).unwrap_or(Ran::Stopped),
                Err(refusal) => Ran::Refused(refusal),
            };
            let result = match ran {
                Ran::Done(done) => Ok(done),
                Ran::Refused(refusal) => Err(refusal),
                Ran::Spoilt(_) | Ran::Stopped => {
                    self.shared.stop_at(*index);
                    break;
                }
            };
            left.has_messages |= result.as_ref().is_ok_and(|done| !done.messages.is_empty());
            left.results.push((*index, result));
        }
    }

    /// Writes what the task changed, for the windows to come, and leaves word for whoever looked there or will.
    fn write(&self, task: usize, left: &mut Left) -> Result<()> {
        let (memory, Left { trail, replaced, .. }) = (&self.run.memory, left);
        make_room(&mut replaced.firsts, trail.changes.len());
        make_room(&mut replaced.again, 0);
        memory.walk(&trail.changes, Change::place, |change| {
            let visit = self.shared.visit(task, change.index);
            self.shared.note(change.location, memory.write_beside(change, visit, replaced)?);
            Ok(())
        })?;
        for (_, hash, code) in &trail.codes {
            memory.add_code(*hash, code.clone());
        }
        Ok(())
    }

    /// The window ends before the first item whose messages find no room.
    fn limit_messages(&self, committer: &Committer<'a>) {
        if !self.left.iter().any(|left| lock(left).has_messages) {
            return;
        }
        let mut weights: Vec<(u32, u64)> = Vec::new();
        for left in &self.left {
            let left = lock(left);
            let done = left.results.iter().filter_map(|(index, result)| Some((index, result.as_ref().ok()?)));
            weights.extend(done.map(|(index, done)| (*index, weigh(&done.messages))));
        }
        weights.sort_unstable_by_key(|(index, _)| *index);
        let mut bytes = committer.outbox_bytes();
        for (index, weight) in weights.into_iter().filter(|(_, weight)| *weight > 0) {
            bytes += weight;
            if bytes > MAX_OUTBOX_BYTES {
                return self.shared.stop_at(index);
            }
        }
    }

    /// The locations are again as they were before the window.
    fn take_back(&self) {
        while let Some(left) = self.left.get(self.next.fetch_add(1, SeqCst)) {
            self.run.memory.take_back(&mut lock(left).replaced);
        }
    }

    /// Writes what the items before the limit changed; no two tasks changed the same.
    fn write_anew(&self, limit: usize) -> Result<()> {
        while let Some(left) = self.left.get(self.next.fetch_add(1, SeqCst)) {
            let (memory, Left { trail, replaced, .. }) = (&self.run.memory, &mut *lock(left));
            trail.truncate(limit as u32);
            memory.walk(&trail.changes, Change::place, |change| {
                let stamp = Stamp { index: change.index, incarnation: 0 };
                memory.set(change.location, stamp, change.value, &mut replaced.firsts)
            })?;
        }
        Ok(())
    }

    /// Keeps what was there before the block where the window was the first to change something.
    fn keep_firsts(&self) {
        let firsts = self.left.iter().map(|left| std::mem::take(&mut lock(left).replaced.firsts));
        lock(&self.run.firsts).extend(firsts.filter(|firsts| !firsts.is_empty()));
    }

    /// Tasks are handed out anew.
    fn rewind(&self) {
        self.next.store(0, SeqCst);
    }
}

impl<'a> Window<'_, 'a> {
    fn take_results(&self) -> Vec<Results> {
        self.left.iter().map(|left| std::mem::take(&mut lock(left).results)).collect()
    }

    /// Accounts for the items before the limit, in order.
    fn commit(&self, results: Vec<Results>, limit: usize) -> Result<()> {
        let run = self.run;
        let mut committer = lock(&run.committer);
        let ran = results.iter().map(Vec::len).sum::<usize>();
        let mut results: Vec<_> = results.into_iter().map(Vec::into_iter).collect();
        for index in self.plan.items.start..limit {
            let result = results[self.plan.task_of(index)].next();
            let Some((found, result)) = result.filter(|(found, _)| *found as usize == index) else {
                return Err(CoreError::Internal(format!("a window of lanes lost item {index}")));
            };
            match result {
                Ok(done) => {
                    let place = committer.place(found as usize) as u32;
                    committer.record(run, index, done, Some(place))?;
                }
                Err(refusal) => committer.refuse(index, refusal)?,
            }
        }
        for left in &self.left {
            let left = lock(left);
            let kept = left.trail.codes.iter().filter(|(index, ..)| (*index as usize) < limit);
            kept.for_each(|(_, hash, code)| committer.add_code(*hash, code.clone()));
        }
        let took: Duration = self.left.iter().map(|left| lock(left).took).sum();
        let kept = limit - self.plan.items.start;
        committer.count_window(ran, ran - kept, took.mul_f64(kept as f64 / ran.max(1) as f64));
        run.advance(&committer, limit);
        Ok(())
    }

    /// What was kept of the tasks, for the access list.
    fn log(&self, committer: &mut Committer<'a>) {
        for left in &self.left {
            let trail = &mut lock(left).trail;
            let touched = trail.touched.iter().map(|(location, _)| *location);
            committer.log().add(touched, std::mem::take(&mut trail.changes));
        }
    }

    /// Remembers which contracts' callers got into each other's way. A window breaks before it has shown all of them, so
    /// what runs the same code is taken to be alike.
    fn learn(&self) -> Result<()> {
        let memory = &self.run.memory;
        let (mut clashed, mut codes): (Vec<Address>, Vec<B256>) = (Vec::new(), Vec::new());
        for (location, items) in self.shared.take_clashes() {
            memory.blame(location);
            clashed.extend(items.into_iter().filter_map(|index| self.called(index as usize)));
        }
        clashed.sort_unstable();
        clashed.dedup();
        for contract in &clashed {
            codes.push(memory.code_hash(contract)?);
        }
        codes.sort_unstable();
        codes.dedup();
        let mut called: Vec<Address> = self.plan.items.clone().filter_map(|index| self.called(index)).collect();
        called.sort_unstable();
        called.dedup();
        for contract in called {
            if codes.binary_search(&memory.code_hash(&contract)?).is_ok() {
                self.run.block.between.habits.lock().note_clash(contract);
            }
        }
        Ok(())
    }

    /// The contract that a transaction calls, unless it is one that every message goes through.
    fn called(&self, index: usize) -> Option<Address> {
        let first = self.run.block.receipts.len() + 1;
        let transaction = self.run.block.batch.entries()[index - first].transaction.as_ref()?;
        transaction.to.to().copied().filter(|to| *to != GATEWAY && !transaction.input.is_empty())
    }
}
