//! What the programs link.

use std::process::Command;

use anyhow::ensure;

/// Whether a crate of this name is linked into a program.
fn links(program: &str, name: &str) -> anyhow::Result<bool> {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none"])
        .args(["--package", program])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // With features unified over the workspace, cargo prints the trees of all its packages.
        .env_remove("CARGO_RESOLVER_FEATURE_UNIFICATION")
        .output()?;
    ensure!(
        tree.status.success(),
        "{}",
        String::from_utf8_lossy(&tree.stderr)
    );
    let crates = String::from_utf8(tree.stdout)?;
    Ok(crates
        .lines()
        .any(|line| line.split_whitespace().next() == Some(name)))
}

#[test]
fn a_worker_links_no_sqlite() -> anyhow::Result<()> {
    assert!(!links("ping-worker", "libsqlite3-sys")?);
    // Control: the writer does.
    assert!(links("consumer-writer", "libsqlite3-sys")?);
    Ok(())
}
