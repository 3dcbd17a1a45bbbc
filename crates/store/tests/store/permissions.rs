//! Who may read the files of a database, and files that another user may have planted.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use pingfleet_store::{FileLock, FileMode, OpenOptions, Reader};
use tempfile::TempDir;

use crate::sample::options;

fn mode(path: &Path) -> Result<u32> {
    let found = fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(found.mode() & 0o777)
}

#[test]
fn a_new_database_and_the_files_beside_it_are_for_the_user_or_the_group() -> Result<()> {
    for (chosen, expected) in [(FileMode::User, 0o600), (FileMode::Group, 0o640)] {
        let folder = TempDir::new()?;
        let path = folder.path().join("fleet.db");
        let options = OpenOptions {
            mode: chosen,
            ..options(&path)
        };
        let mut store = options.open()?;
        store.try_commit()?;
        let _lock = FileLock::writer(&path)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(folder.path())? {
            let path = entry?.path();
            found.push((path.display().to_string(), mode(&path)?));
        }
        ensure!(found.len() == 4, "{found:?}");
        ensure!(found.iter().all(|(_, mode)| *mode == expected), "{found:?}");
    }
    Ok(())
}

#[test]
fn a_database_keeps_the_mode_that_its_owner_gave_it() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    options(&path).open()?.close()?;
    fs::set_permissions(&path, Permissions::from_mode(0o644))?;
    let store = options(&path).open()?;
    let lock = FileLock::writer(&path)?;
    ensure!(mode(&path)? == 0o644);
    // Who reads the database sees who has a lock.
    ensure!(mode(&folder.path().join("fleet.db-writer.lock"))? == 0o644);
    drop((store, lock));
    Ok(())
}

/// A folder for all, as /tmp is.
fn shared() -> Result<TempDir> {
    let folder = TempDir::new()?;
    fs::set_permissions(folder.path(), Permissions::from_mode(0o1777))?;
    Ok(folder)
}

/// Why a database cannot be opened to write.
fn refusal(path: &Path) -> Result<String> {
    let refused = options(path).open().err().context("it was opened")?;
    Ok(refused.to_string())
}

#[test]
fn a_link_or_the_file_of_another_user_in_a_folder_for_all_is_refused() -> Result<()> {
    let own = TempDir::new()?;
    let target = own.path().join("fleet.db");
    options(&target).open()?.close()?;
    let folder = shared()?;
    let link = folder.path().join("fleet.db");
    symlink(&target, &link)?;
    let refused = refusal(&link)?;
    ensure!(
        refused.contains("symbolic link in a folder that every user may write to"),
        "{refused}"
    );
    fs::remove_file(&link)?;
    // It may lead to a file that does not exist yet.
    symlink(own.path().join("new"), &link)?;
    ensure!(refusal(&link)?.contains("symbolic link"));
    ensure!(!own.path().join("new").exists());
    fs::remove_file(&link)?;

    fs::copy(&target, &link)?;
    std::os::unix::fs::chown(&link, Some(12_345), None)?;
    let refused = refusal(&link)?;
    ensure!(
        refused.contains("belongs to the user with the id 12345"),
        "{refused}"
    );
    // The controls: a file of our own in that folder, a link in a folder of our own, and a reader.
    Reader::open(&link)?;
    std::os::unix::fs::chown(&link, Some(0), None)?;
    options(&link).open()?.close()?;
    // SQLite would read the log that another user has put beside it.
    for suffix in ["-wal", "-shm", "-journal"] {
        let beside = folder.path().join(format!("fleet.db{suffix}"));
        fs::write(&beside, "")?;
        std::os::unix::fs::chown(&beside, Some(12_345), None)?;
        let refused = refusal(&link)?;
        ensure!(
            refused.contains(&format!("its file {suffix} may be a trap")),
            "{refused}"
        );
        fs::remove_file(&beside)?;
    }
    options(&link).open()?.close()?;
    let link = own.path().join("link.db");
    symlink(&target, &link)?;
    options(&link).open()?.close()?;
    Ok(())
}

#[test]
fn a_link_to_a_file_that_does_not_exist_creates_none() -> Result<()> {
    let own = TempDir::new()?;
    let link = own.path().join("link.db");
    symlink(own.path().join("new.db"), &link)?;
    let refused = refusal(&link)?;
    ensure!(
        refused.contains("a symbolic link to a file that does not exist"),
        "{refused}"
    );
    ensure!(!own.path().join("new.db").exists());
    Ok(())
}

#[test]
fn a_lock_is_no_link_no_pipe_and_its_text_is_a_number() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    options(&path).open()?.close()?;
    let lock = folder.path().join("fleet.db-writer.lock");
    let precious = folder.path().join("precious");
    fs::write(&precious, "text")?;
    symlink(&precious, &lock)?;
    let refused = FileLock::writer(&path).err().context("it was locked")?;
    ensure!(refused.to_string().contains("symbolic link"), "{refused}");
    ensure!(fs::read_to_string(&precious)? == "text");
    fs::remove_file(&lock)?;

    ensure!(Command::new("mkfifo").arg(&lock).status()?.success());
    let refused = FileLock::writer(&path).err().context("it was locked")?;
    ensure!(refused.to_string().contains("no regular file"), "{refused}");
    fs::remove_file(&lock)?;

    // Somebody else has it, and wrote escapes into it.
    fs::write(&lock, "pid 1\u{1b}[2J")?;
    let theirs = fs::File::open(&lock)?;
    theirs.lock()?;
    let refused = FileLock::writer(&path).err().context("it was locked")?;
    ensure!(!refused.to_string().contains("pid"), "{refused}");
    // The control: a number is shown.
    fs::write(&lock, "pid 17")?;
    let refused = FileLock::writer(&path).err().context("it was locked")?;
    ensure!(refused.to_string().contains("(pid 17)"), "{refused}");
    drop(theirs);
    FileLock::writer(&path)?;
    Ok(())
}
