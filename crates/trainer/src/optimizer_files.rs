//! The optimizer's moments on disk: one file per rank, readable by any number of ranks.
//!
//! A file holds the moments of the elements that its rank owns. Elements are named by their place in the vector of all
//! parameters ([`FlatLayout`]), which depends on names and shapes alone, so a reader takes what it owns from whichever files
//! have it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::flat::{FlatLayout, Place, stretch};
use crate::optimizer::AdamW;
use crate::ranks::Ranks;
use crate::tensors::{self, Values};

/// Below a checkpoint's folder.
const FOLDER: &str = "trainer/optimizer";
const INDEX_FILE: &str = "index.json";
const FIRST: &str = "exp_avg";
const SECOND: &str = "exp_avg_sq";

/// What the files hold.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    /// Where each parameter's elements are.
    parameters: Vec<Place>,
    /// The elements of each rank's file, in order.
    files: Vec<Vec<Range<usize>>>,
}

/// This rank's moments of one moment, as they are written; the first rank's with what all files hold.
#[derive(Debug)]
pub(crate) struct Share {
    rank: usize,
    world_size: usize,
    moments: [Values; 2],
    index: Option<String>,
}

/// Copies this rank's moments to the host, in the form in which they are written.
///
/// # Errors
/// When the memory cannot be had.
pub(crate) fn snapshot(optimizer: &AdamW, ranks: &Ranks) -> Result<Share> {
    let world_size = ranks.world_size();
    let index = || {
        let index = Index {
            parameters: optimizer.layout().places().to_vec(),
            files: (0..world_size)
                .map(|rank| optimizer.owned_by(rank))
                .collect(),
        };
        serde_json::to_string(&index)
            .map_err(|error| Error::stage("writing the optimizer's index", error))
    };
    let moments = optimizer.owned();
    Ok(Share {
        rank: ranks.rank(),
        world_size,
        moments: [
            Values::of(FIRST, &moments.first_moments)?,
            Values::of(SECOND, &moments.second_moments)?,
        ],
        index: ranks.is_first().then(index).transpose()?,
    })
}

impl Share {
    /// Writes the moments below the checkpoint folder `dir`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let folder = dir.join(FOLDER);
        fs::create_dir_all(&folder)?;
        if let Some(index) = &self.index {
            fs::write(folder.join(INDEX_FILE), index)?;
        }
        let path = file_of(&folder, self.rank, self.world_size);
        tensors::write(&path, &self.moments)?;
        // Its owner alone knows when it is on the disk.
        fs::File::open(&path)?.sync_all()?;
        Ok(())
    }
}

/// Takes over this rank's moments from a checkpoint of any number of ranks, and the count of updates.
///
/// # Errors
/// When a file is missing or damaged, or is of other parameters.
pub(crate) fn restore(
    optimizer: &mut AdamW,
    ranks: &Ranks,
    dir: &Path,
    num_updates: u64,
) -> Result<()> {
    let folder = dir.join(FOLDER);
    let index = read_index(&folder.join(INDEX_FILE), optimizer.layout())?;
    let wanted = optimizer.owned_by(ranks.rank());
    let moments = optimizer.owned();
    let _no_grad = tch::no_grad_guard();
    let mut num_restored = 0;
    for (rank, elements) in index.files.iter().enumerate() {
        let copies = overlaps(elements, &wanted);
        if copies.is_empty() {
            continue;
        }
        let path = file_of(&folder, rank, index.files.len());
        for (name, saved) in tensors::load(&path)? {
            let target = match name.as_str() {
                FIRST => &moments.first_moments,
                SECOND => &moments.second_moments,
                _ => continue,
            };
            let num_saved: usize = elements.iter().map(Range::len).sum();
            if saved.size() != [crate::flat::signed(num_saved)] {
                return Err(Error::stage(
                    format!("reading `{}`", path.display()),
                    format!("`{name}` has another size than the index says"),
                ));
            }
            for Overlap { from, to, length } in &copies {
                stretch(target, &(*to..to + length))?
                    .f_copy_(&stretch(&saved, &(*from..from + length))?)?;
                num_restored += length;
            }
        }
    }
    // The padding at the end depends on the number of ranks and holds nothing.
    let needed: usize = wanted
        .iter()
        .map(|range| {
            range
                .end
                .min(optimizer.layout().num_elements())
                .saturating_sub(range.start)
        })
        .sum();
    if num_restored < 2 * needed {
        return Err(Error::stage(
            format!("reading `{}`", folder.display()),
            format!(
                "moments of {} values are missing",
                needed - num_restored / 2
            ),
        ));
    }
    optimizer.set_num_updates(num_updates);
    Ok(())
}

fn file_of(folder: &Path, rank: usize, world_size: usize) -> PathBuf {
    folder.join(format!("rank_{rank}_of_{world_size}.safetensors"))
}

fn read_index(path: &Path, layout: &FlatLayout) -> Result<Index> {
    let refuse = |reason: String| Error::stage(format!("reading `{}`", path.display()), reason);
    let index: Index =
        serde_json::from_slice(&fs::read(path)?).map_err(|error| refuse(error.to_string()))?;
    if let Some(place) = layout
        .places()
        .iter()
        .find(|place| !index.parameters.contains(place))
    {
        return Err(refuse(format!(
            "it is of another model: `{}` is missing or has another shape",
            place.name
        )));
    }
    Ok(index)
}

/// `length` elements at `from` of what is saved go to `to` of what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Overlap {
    from: usize,
    to: usize,
    length: usize,
}

/// Where two lists of stretches of one vector meet; positions count through each list.
fn overlaps(saved: &[Range<usize>], wanted: &[Range<usize>]) -> Vec<Overlap> {
    let mut copies = Vec::new();
    let mut from_start = 0;
    for from in saved {
        let mut to_start = 0;
        for to in wanted {
            let (start, end) = (from.start.max(to.start), from.end.min(to.end));
            if start < end {
                copies.push(Overlap {
                    from: from_start + start - from.start,
                    to: to_start + start - to.start,
                    length: end - start,
                });
            }
            to_start += to.len();
        }
        from_start += from.len();
    }
    copies
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::flat::Cuts;

    proptest! {
        #[test]
        fn every_element_finds_its_way(
            num_elements in 1_usize..2000,
            before in (1_usize..6, 1_usize..900),
            after in (1_usize..6, 1_usize..900),
        ) {
            let old = Cuts::new(num_elements, before.0, before.1);
            let new = Cuts::new(num_elements, after.0, after.1);
            for rank in 0..after.0 {
                let wanted: Vec<usize> = new.owned(rank).into_iter().flatten().collect();
                let mut got = vec![None; wanted.len()];
                for saver in 0..before.0 {
                    let saved: Vec<usize> = old.owned(saver).into_iter().flatten().collect();
                    for Overlap { from, to, length } in overlaps(&old.owned(saver), &new.owned(rank)) {
                        for offset in 0..length {
                            prop_assert_eq!(got[to + offset], None);
                            got[to + offset] = Some(saved[from + offset]);
                        }
                    }
                }
                for (element, got) in wanted.iter().zip(got) {
                    prop_assert!(got == Some(*element) || *element >= num_elements);
                }
            }
        }
    }
}
