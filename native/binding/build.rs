//! Leaves in the library what a core with one thread runs: the hash of its sources. Whoever keeps what was found with a build
//! can so tell whether another one, made elsewhere, by another compiler, or with other ways of using several threads, would
//! find the same.

use std::io::Result;
use std::path::{Path, PathBuf};

/// What decides it, below `native`.
const SOURCES: [&str; 6] =
    ["Cargo.lock", "Cargo.toml", "binding/Cargo.toml", "binding/src", "core/Cargo.toml", "core/src"];
/// Only entered with several threads.
const PARALLEL: &str = "core/src/parallel";
const HASH_BYTES: usize = 8;

fn main() -> Result<()> {
    let native = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("..")).to_path_buf();
    let mut files = Vec::new();
    for source in SOURCES.map(|source| native.join(source)) {
        println!("cargo::rerun-if-changed={}", source.display());
        collect(&source, &native.join(PARALLEL), &mut files)?;
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for file in &files {
        let name: Vec<_> =
            file.strip_prefix(&native).unwrap_or(file).iter().map(|part| part.to_string_lossy()).collect();
        let content = std::fs::read(file)?;
        hasher.update(format!("{} {}\n", name.join("/"), content.len()).as_bytes()).update(&content);
    }
    let hash = hasher.finalize();
    let digits: String = hash.as_bytes()[..HASH_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=SEQUENTIAL_SOURCES={digits}");
    Ok(())
}

/// The files at or below a place, but for those below another.
fn collect(place: &Path, without: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if place == without {
        return Ok(());
    }
    if !place.is_dir() {
        files.push(place.to_path_buf());
        return Ok(());
    }
    for entry in std::fs::read_dir(place)? {
        collect(&entry?.path(), without, files)?;
    }
    Ok(())
}
