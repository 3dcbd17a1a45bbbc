//! A disk of a few MiB, for what happens when it is full or may not be written.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

use crate::cleanup::Cleanup;

/// A small file system in memory (tmpfs). It is removed when the value is dropped, at the latest with the test process.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
    _cleanup: Cleanup,
}

impl SmallDisk {
    /// Makes one of `kib` KiB.
    ///
    /// # Errors
    /// When it cannot be mounted, mostly because the test does not run as root.
    pub fn new(kib: u32) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("pingfleet-disk-")
            .tempdir()?;
        let path = folder.path().to_string_lossy().into_owned();
        let cleanup = Cleanup::new(
            "umount --lazy \"$1\"; rmdir \"$1\" || { sleep 1; rmdir \"$1\"; }",
            &[&path],
        )?;
        let disk = Self {
            path: folder.keep(),
            _cleanup: cleanup,
        };
        let size = format!("size={kib}k");
        mount(&["-t", "tmpfs", "-o", &size, "pingfleet", &path])?;
        Ok(disk)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills it up to `left` free bytes.
    ///
    /// # Errors
    /// When it cannot be written at all.
    pub fn fill(&self, left: usize) -> anyhow::Result<()> {
        let filling = self.filling();
        let mut file = fs::File::create(&filling)?;
        let page = [0_u8; 4096];
        let mut pages = 0_usize;
        loop {
            match io::Write::write_all(&mut file, &page) {
                Ok(()) => pages += 1,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
        let kept = pages.saturating_sub(left.div_ceil(page.len()));
        file.set_len((kept * page.len()) as u64)?;
        Ok(())
    }

    /// Makes room again.
    ///
    /// # Errors
    /// When it was not filled.
    pub fn empty(&self) -> anyhow::Result<()> {
        fs::remove_file(self.filling()).context("the disk was not filled")
    }

    /// Makes the disk read-only, or writable again. No file may be open for writing.
    ///
    /// # Errors
    /// When a file is open for writing.
    pub fn set_read_only(&self, read_only: bool) -> anyhow::Result<()> {
        let mode = if read_only {
            "remount,ro"
        } else {
            "remount,rw"
        };
        mount(&["-o", mode, &self.path.to_string_lossy()])
    }

    fn filling(&self) -> PathBuf {
        self.path.join("filling")
    }
}

fn mount(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("mount").args(arguments).output()?;
    ensure!(
        output.status.success(),
        "mount {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_takes_what_is_left_and_no_more() -> anyhow::Result<()> {
        let disk = SmallDisk::new(256)?;
        disk.fill(8192)?;
        let file = disk.path().join("file");
        fs::write(&file, [1; 8192])?;
        let refused = fs::write(disk.path().join("more"), [1; 8192]);
        assert!(refused.is_err_and(|error| error.kind() == io::ErrorKind::StorageFull));
        disk.empty()?;
        disk.set_read_only(true)?;
        assert!(fs::write(&file, [2; 1]).is_err());
        disk.set_read_only(false)?;
        fs::write(&file, [2; 1])?;
        Ok(())
    }
}
