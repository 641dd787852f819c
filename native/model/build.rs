//! Plants the bugs: each is the protocol with one piece of its text replaced, compiled beside the sound one, so that tests
//! can show that the checker finds it. A piece that is not there exactly once stops the build: the list has to follow.

use std::fmt::Write;
use std::path::Path;

const PROTOCOL: &str = "../core/src/parallel";

struct Flaw {
    name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

const FLAWS: [Flaw; 11] = [
    Flaw {
        name: "sleeps_without_a_second_look",
        file: "crew",
        from: "if !self.is_over() && !self.has_commits() && !self.has_work() {",
        to: "if !self.is_over() {",
    },
    Flaw {
        name: "sleeps_while_the_block_ends",
        file: "crew",
        from: "if !self.is_over() && !self.has_commits() && !self.has_work() {",
        to: "if !self.has_commits() && !self.has_work() {",
    },
    Flaw { name: "rings_without_the_lock", file: "crew", from: "drop(lock(&self.bed));", to: "" },
    Flaw {
        name: "parks_behind_what_is_done",
        file: "status",
        from: "if matches!(state, State::Done | State::Committed) {",
        to: "if false {",
    },
    Flaw { name: "parks_without_saying_so", file: "status", from: "fetch_or(IS_AWAITED, SeqCst)", to: "load(SeqCst)" },
    Flaw {
        name: "commits_without_waking_who_parked",
        file: "status",
        from: "self.settle(index, pack(State::Committed, self.incarnation(index), 0));",
        to: "self.items[index].word.store(pack(State::Committed, self.incarnation(index), 0), SeqCst);",
    },
    Flaw {
        name: "asks_again_without_giving_way",
        file: "crew",
        from: "Outcome::Blocked(_) => yield_now(),",
        to: "Outcome::Blocked(_) => {}",
    },
    Flaw { name: "leaves_waiters_parked", file: "status", from: "            self.retry(waiter);\n", to: "" },
    Flaw {
        name: "goes_alone_among_items_in_flight",
        file: "status",
        from: "(cursor <= items.start).then_some(items.end)",
        to: "Some(items.end.max(cursor))",
    },
    Flaw {
        name: "takes_what_another_took",
        file: "status",
        from: "match word.compare_exchange(old, new, SeqCst, SeqCst) {",
        to: "match Ok::<u32, u32>(word.swap(new, SeqCst)) {",
    },
    Flaw {
        name: "tries_ahead_of_its_turn_for_ever",
        file: "status",
        from: "} else if incarnation >= MAX_INCARNATIONS {",
        to: "} else if false {",
    },
];

fn read(path: &Path) -> String {
    println!("cargo::rerun-if-changed={}", path.display());
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text of a file with the flaw in it, if it is this file's.
fn plant(flaw: &Flaw, file: &str, text: &str) -> String {
    if flaw.file != file {
        return text.to_owned();
    }
    let found = text.matches(flaw.from).count();
    assert!(
        found == 1,
        "{}: got {found} places with `{}` in {file}.rs, expected one. try: follow the change in build.rs",
        flaw.name,
        flaw.from
    );
    text.replace(flaw.from, flaw.to)
}

fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("Cargo names the package's folder");
    let out = std::env::var("OUT_DIR").expect("Cargo names a folder for what is made");
    let root = Path::new(&root);
    println!("cargo::rerun-if-changed=build.rs");
    let paths = [
        ("status", root.join(PROTOCOL).join("status.rs")),
        ("crew", root.join(PROTOCOL).join("crew.rs")),
        ("block", root.join("src/sound/block.rs")),
    ];
    let files = paths.map(|(name, path)| (name, read(&path)));
    let (mut modules, mut list) = (String::new(), String::new());
    for flaw in &FLAWS {
        writeln!(modules, "pub mod {} {{\nuse crate::sync;", flaw.name).expect("memory suffices");
        for (file, text) in &files {
            writeln!(modules, "pub mod {file} {{\n{}\n}}", plant(flaw, file, text)).expect("memory suffices");
        }
        writeln!(modules, "}}").expect("memory suffices");
        writeln!(list, "(\"{0}\", {0}::block::run_any as fn()),", flaw.name).expect("memory suffices");
    }
    writeln!(modules, "/// Each planted bug's name, and a block run by workers that have it.")
        .expect("memory suffices");
    writeln!(modules, "pub const FLAWS: [(&str, fn()); {}] = [\n{list}];", FLAWS.len()).expect("memory suffices");
    std::fs::write(Path::new(&out).join("flawed.rs"), modules).expect("the folder can be written");
}
