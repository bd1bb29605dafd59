//! The optimizer's moments on disk: one file per rank, readable by any number of ranks.
//!
//! A file holds the moments of the elements that its rank owns. Elements are named by their slot in the vector of all
//! parameters ([`FlatLayout`]), which depends on names and shapes alone, so a reader takes what it owns from whichever files
//! have it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::{Error, Result};
use crate::flat::{FlatLayout, ParameterSlot, Piece, narrow, signed};
use crate::optimizer::{AdamW, FIRST, SECOND};
use crate::ranks::Ranks;
use crate::tensors::{self, Values};

/// Below a checkpoint's folder.
const FOLDER: &str = "trainer/optimizer";
const INDEX_FILE: &str = "index.json";

/// What the files hold.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    /// Where each parameter's elements are.
    parameters: Vec<ParameterSlot>,
    /// The elements of each rank's file, in order.
    files: Vec<Vec<Range<usize>>>,
}

/// This rank's moments of one moment, as they are written; the first rank's with what all files hold.
#[derive(Debug)]
pub struct Share {
    rank: usize,
    world_size: usize,
    moments: [Values; 2],
    index: Option<String>,
}

/// Copies this rank's moments to the host, in the form in which they are written.
///
/// # Errors
/// When the memory cannot be had.
pub fn snapshot(optimizer: &AdamW, ranks: &Ranks) -> Result<Share> {
    let world_size = ranks.world_size();
    let index = || {
        let index = Index {
            parameters: optimizer.layout().slots().to_vec(),
            files: (0..world_size)
                .map(|rank| elements_of(&optimizer.pieces(rank)))
                .collect(),
        };
        serde_json::to_string(&index)
            .map_err(|error| Error::stage("writing the optimizer's index", error))
    };
    let (moments, pieces) = (optimizer.owned(), optimizer.pieces(ranks.rank()));
    Ok(Share {
        rank: ranks.rank(),
        world_size,
        moments: [
            Values::of(FIRST, &packed(&moments.first_moments, &pieces)?)?,
            Values::of(SECOND, &packed(&moments.second_moments, &pieces)?)?,
        ],
        index: ranks.is_first().then(index).transpose()?,
    })
}

impl Share {
    /// Name of the file inside a checkpoint.
    pub fn file_name(&self) -> PathBuf {
        file_of(Path::new(FOLDER), self.rank, self.world_size)
    }

    /// Writes the moments below the checkpoint folder `dir`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, dir: &Path) -> Result<()> {
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
pub fn restore(optimizer: &mut AdamW, ranks: &Ranks, dir: &Path, num_updates: u64) -> Result<()> {
    let folder = dir.join(FOLDER);
    let index = read_index(&folder.join(INDEX_FILE), optimizer.layout())?;
    let wanted = optimizer.pieces(ranks.rank());
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
            if saved.size() != [signed(num_saved)] {
                return Err(Error::stage(
                    format!("reading `{}`", path.display()),
                    format!("`{name}` has another size than the index says"),
                ));
            }
            for Overlap { from, to, length } in &copies {
                narrow(target, &(*to..to + length))?
                    .f_copy_(&narrow(&saved, &(*from..from + length))?)?;
                num_restored += length;
            }
        }
    }
    let needed: usize = wanted.iter().map(|piece| piece.elements.len()).sum();
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

fn elements_of(pieces: &[Piece]) -> Vec<Range<usize>> {
    pieces.iter().map(|piece| piece.elements.clone()).collect()
}

/// A vector of what a rank owns without its padding.
fn packed(owned: &Tensor, pieces: &[Piece]) -> Result<Tensor> {
    let part = |piece: &Piece| {
        let start = piece.owned_start;
        Ok(narrow(owned, &(start..start + piece.elements.len()))?)
    };
    if let [piece] = pieces {
        return part(piece);
    }
    let parts = pieces.iter().map(part).collect::<Result<Vec<_>>>()?;
    if parts.is_empty() {
        // A vector may have fewer elements than there are ranks.
        return Ok(narrow(owned, &(0..0))?);
    }
    Ok(Tensor::f_cat(&parts, 0)?)
}

fn file_of(folder: &Path, rank: usize, world_size: usize) -> PathBuf {
    folder.join(format!("rank_{rank}_of_{world_size}.safetensors"))
}

fn read_index(path: &Path, layout: &FlatLayout) -> Result<Index> {
    let refuse = |reason: String| Error::stage(format!("reading `{}`", path.display()), reason);
    let index: Index =
        serde_json::from_slice(&fs::read(path)?).map_err(|error| refuse(error.to_string()))?;
    if let Some(slot) = layout
        .slots()
        .iter()
        .find(|slot| !index.parameters.contains(slot))
    {
        return Err(refuse(format!(
            "it is of another model: `{}` is missing or has another shape",
            slot.name
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

/// Where what is saved, range after range, meets what is wanted.
fn overlaps(saved: &[Range<usize>], wanted: &[Piece]) -> Vec<Overlap> {
    let mut copies = Vec::new();
    let mut from_start = 0;
    for from in saved {
        for Piece {
            elements: to,
            owned_start,
        } in wanted
        {
            let (start, end) = (from.start.max(to.start), from.end.min(to.end));
            if start < end {
                copies.push(Overlap {
                    from: from_start + start - from.start,
                    to: owned_start + start - to.start,
                    length: end - start,
                });
            }
        }
        from_start += from.len();
    }
    copies
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::{Device, Kind};

    use super::*;
    use crate::flat::{BucketCuts, UnitCuts};

    fn layout(layers: &[i64]) -> FlatLayout {
        let of_layer = |(index, &size): (usize, &i64)| {
            let name = format!("model.layers.{index}.mlp.up_proj.weight");
            (name, vec![size, 3])
        };
        let root = ("model.embed_tokens.weight".to_owned(), vec![7, 3]);
        let layers = layers.iter().enumerate().map(of_layer);
        FlatLayout::new(&layers.chain([root]).collect::<Vec<_>>())
    }

    /// The pieces of all ranks and the elements that each owns; with buckets, or without, in units.
    fn shares(
        layout: &FlatLayout,
        num_ranks: usize,
        bucket_elements: Option<usize>,
    ) -> (Vec<Vec<Piece>>, usize) {
        let ranks = 0..num_ranks;
        if let Some(size) = bucket_elements {
            let cuts = BucketCuts::new(layout.num_elements(), num_ranks, size);
            let pieces = ranks.map(|rank| cuts.pieces(rank)).collect();
            return (pieces, cuts.owned_elements());
        }
        let cuts = UnitCuts::new(layout, num_ranks);
        let pieces = ranks.map(|rank| cuts.pieces(rank)).collect();
        (pieces, cuts.owned_elements())
    }

    proptest! {
        #[test]
        fn every_element_finds_its_way(
            layers in prop::collection::vec(1_i64..200, 1..5),
            before in (1_usize..6, prop::option::of(1_usize..900)),
            after in (1_usize..6, prop::option::of(1_usize..900)),
        ) {
            let layout = layout(&layers);
            let (old, num_owned) = shares(&layout, before.0, before.1);
            let (new, _) = shares(&layout, after.0, after.1);
            for wanted in &new {
                let mut missing: usize = wanted.iter().map(|piece| piece.elements.len()).sum();
                for saver in &old {
                    // What the saver owns holds the number of each element.
                    let owned = Tensor::full(signed(num_owned), -1, (Kind::Int64, Device::Cpu));
                    for Piece { elements, owned_start } in saver {
                        let numbers = Tensor::arange_start(
                            signed(elements.start),
                            signed(elements.end),
                            (Kind::Int64, Device::Cpu),
                        );
                        let slot = *owned_start..owned_start + elements.len();
                        narrow(&owned, &slot).unwrap().copy_(&numbers);
                    }
                    let file = Vec::<i64>::try_from(packed(&owned, saver).unwrap()).unwrap();
                    for Overlap { from, to, length } in overlaps(&elements_of(saver), wanted) {
                        for offset in 0..length {
                            let slot = |piece: &&Piece| {
                                let start = piece.owned_start;
                                (start..start + piece.elements.len()).contains(&(to + offset))
                            };
                            let piece = wanted.iter().find(slot).unwrap();
                            let element = piece.elements.start + to + offset - piece.owned_start;
                            prop_assert_eq!(file[from + offset], signed(element));
                            missing -= 1;
                        }
                    }
                }
                prop_assert_eq!(missing, 0);
            }
        }
    }
}
