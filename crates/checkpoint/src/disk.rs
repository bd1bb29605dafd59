//! Removing files and folders, and putting them on the disk.

use std::path::Path;

use fs_err as fs;

use crate::error::Result;
use crate::manifest::file_names;

/// Whether something lies at `path`, a link that points nowhere included.
pub(crate) fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Removes a file or folder, if it is there.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path)?,
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Puts a file or a folder's entries on the disk.
///
/// # Errors
/// When the disk refuses.
pub fn sync(path: &Path) -> Result<()> {
    fs::File::open(path)?.sync_all()?;
    Ok(())
}

/// Puts every file and folder below `dir` on the disk, files first.
pub(crate) fn sync_tree(dir: &Path) -> Result<()> {
    let mut folders = std::collections::BTreeSet::from([dir.to_owned()]);
    for name in file_names(dir)? {
        let path = dir.join(name);
        sync(&path)?;
        folders.extend(
            path.ancestors()
                .skip(1)
                .take_while(|folder| folder.starts_with(dir))
                .map(Path::to_owned),
        );
    }
    for folder in folders.iter().rev() {
        sync(folder)?;
    }
    Ok(())
}
