//! Files that are either whole or absent.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use fs_err as fs;

/// Writes a file beside its final place, flushes it to the disk, and renames it.
///
/// A reader, or a run that is killed at any moment, sees the old file or the new one, never a part. The directory is created.
///
/// # Errors
/// What `write` returns, and I/O errors, which name the path.
pub fn write_atomic<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut fs::File) -> Result<(), E>,
) -> Result<(), E> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&directory)?;
    let temporary = temporary_path(path, &directory);
    let result = write_and_sync(&temporary, write).and_then(|()| Ok(fs::rename(&temporary, path)?));
    if result.is_err() {
        // Best effort: the error that counts is the first one.
        let _ = fs::remove_file(&temporary);
        return result;
    }
    sync_directory(&directory)?;
    Ok(())
}

/// [`write_atomic`] for content that is already in memory.
///
/// # Errors
/// I/O errors, which name the path.
pub fn write_bytes_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomic(path, |file| file.write_all(bytes))
}

fn write_and_sync<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut fs::File) -> Result<(), E>,
) -> Result<(), E> {
    let mut file = fs::File::create(path)?;
    write(&mut file)?;
    file.sync_all()?;
    Ok(())
}

/// The process id keeps two processes apart that write the same file; the leading dot keeps it out of listings.
fn temporary_path(path: &Path, directory: &Path) -> PathBuf {
    let name = path
        .file_name()
        .map_or_else(|| "file".into(), |name| name.to_string_lossy());
    directory.join(format!(".{name}.{}.tmp", std::process::id()))
}

/// Removes the temporary files of [`write_atomic`] in `directory` whose process has ended. Where the system does not tell
/// which processes live, nothing is removed; a folder that does not exist holds none.
///
/// # Errors
/// The directory cannot be read, or a file not be removed.
pub fn remove_stale_temporaries(directory: &Path) -> io::Result<()> {
    if !Path::new("/proc/self").exists() || !directory.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix('.')?.strip_suffix(".tmp"))
            .and_then(|name| name.rsplit_once('.')?.1.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// A rename is durable once the directory that holds the name is.
fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(unix) {
        fs::File::open(directory)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_processes_left_is_removed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        // Larger than any process id.
        let stale = ".step_50.parquet.4294967295.tmp";
        let live = format!(".step_51.parquet.{}.tmp", std::process::id());
        for name in [stale, live.as_str(), "kept.tmp", ".hidden"] {
            fs::write(directory.path().join(name), b"x").unwrap();
        }
        remove_stale_temporaries(directory.path()).unwrap();
        remove_stale_temporaries(&directory.path().join("none")).unwrap();
        let is_left = |name: &str| directory.path().join(name).exists();
        assert!(!is_left(stale) || !cfg!(target_os = "linux"));
        assert!(is_left(&live) && is_left("kept.tmp") && is_left(".hidden"));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/file");
        write_bytes_atomic(&path, b"old").unwrap();
        let failed: io::Result<()> = write_atomic(&path, |file| {
            file.write_all(b"ne")?;
            Err(io::Error::other("cut"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
