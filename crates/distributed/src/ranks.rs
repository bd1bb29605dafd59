//! The processes that train one model together, as one of them sees it.

use std::time::Duration;

use asyncthink_launch::World;
use asyncthink_recipe::RecipeData;
use asyncthink_torch::{Backend, GroupOptions, ProcessGroup, Reduction, Store, StoreOptions, Work};
use tch::{Device, Kind, Tensor};

use crate::device::{DeviceSettings, open_device, open_device_of_rank, share_cores};
use crate::digest::sums_of;
use crate::error::{Error, Result, SharedFailure};

/// How long ranks wait for the store at most, whatever the recipe's timeout.
const MAX_MEETING: Duration = Duration::from_mins(5);

/// Longest message of a failure that is told to the other ranks.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Most bytes that a rank may bring to an exchange.
const MAX_GATHERED_BYTES: usize = 1 << 30;

/// Settings for joining the process group.
#[derive(Clone, Debug)]
pub struct RankSettings {
    /// Device and threads.
    pub device: DeviceSettings,
    /// Timeout of a collective before the run fails.
    pub timeout: Duration,
}

impl RankSettings {
    /// The settings of a recipe.
    pub fn of(recipe: &RecipeData) -> Self {
        Self {
            device: DeviceSettings::of(recipe),
            timeout: Duration::from_secs(recipe.distributed.timeout_secs as u64),
        }
    }
}

/// All ranks of a run; alone, everything here is done at once and moves nothing.
///
/// Every method but the plain questions is a collective: all ranks call it, in the same order.
#[derive(Debug)]
pub struct Ranks {
    group: ProcessGroup,
    /// Kept for as long as the group: the first rank may be the one who serves it.
    _store: Option<Store>,
}

impl Default for Ranks {
    fn default() -> Self {
        Self::single()
    }
}

impl Ranks {
    /// A run of one process.
    pub fn single() -> Self {
        Self::new(ProcessGroup::single())
    }

    /// The ranks of a group whose tensors are where the model is.
    pub fn new(group: ProcessGroup) -> Self {
        Self {
            group,
            _store: None,
        }
    }

    /// Joins the ranks of the world that a launcher started. Opens this rank's device first; without `needs_device` that is the
    /// CPU. Nothing is opened for a world of one. `stage` names the process group.
    ///
    /// # Errors
    /// When the device is not there, the address of the first rank cannot be resolved, or ranks do not come in time, which are
    /// named.
    pub fn join(
        world: &World,
        settings: &RankSettings,
        stage: &str,
        needs_device: bool,
    ) -> Result<Self> {
        let (Some(master), true) = (world.master(), world.world_size() > 1) else {
            return Ok(Self::single());
        };
        let (local_rank, num_local_ranks) = (
            world.local_rank().get() as usize,
            world.local_world_size() as usize,
        );
        world.check_master()?;
        let device = if needs_device {
            open_device_of_rank(&settings.device, local_rank, num_local_ranks)?
        } else {
            share_cores(&settings.device, num_local_ranks)?;
            Device::Cpu
        };
        let timeout = settings.timeout;
        let rank = world.rank().get() as usize;
        let options = StoreOptions {
            timeout: timeout.min(MAX_MEETING),
            ..StoreOptions::default()
        };
        let world_size = world.world_size() as usize;
        let store_rank = (!world.use_agent_store()).then_some(0);
        let store = if store_rank == Some(rank) {
            Store::serve(&master.addr, master.port, &options)?
        } else {
            let connected = Store::connect(&master.addr, master.port, &options);
            connected.map_err(|source| match store_rank {
                Some(missing) => Error::NoStore {
                    rank,
                    world_size,
                    phase: format!("{stage}: joining the ranks"),
                    missing,
                    source: Box::new(source),
                },
                None => source.into(),
            })?
        };
        // A launcher's store outlives a restart; the ranks of each attempt agree on a name of their own.
        let options = GroupOptions {
            rank,
            world_size,
            timeout,
            name: stage.to_owned(),
            store_rank,
        };
        Ok(Self {
            group: ProcessGroup::new(&store, device, &options)?,
            _store: Some(store),
        })
    }

    /// Device of this rank; in a world of one it is opened now.
    ///
    /// # Errors
    /// When the device is not there, or threads already run in another number.
    pub fn open_device(&self, settings: &DeviceSettings) -> Result<Device> {
        match self.group.device() {
            Some(device) => Ok(device),
            None => open_device(settings),
        }
    }

    /// Waits for the others before the end: whoever serves the store must be the last to go.
    ///
    /// # Errors
    /// When a rank is lost.
    pub fn part(&self) -> Result<()> {
        Ok(self.group.barrier()?)
    }

    /// This process, from 0.
    pub fn rank(&self) -> usize {
        self.group.rank()
    }

    /// How many there are.
    pub fn world_size(&self) -> usize {
        self.group.world_size()
    }

    /// Whether this is the rank that owns the run's folder and speaks to the user.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Whether there is no other rank.
    pub fn is_alone(&self) -> bool {
        self.world_size() == 1
    }

    /// The group.
    pub fn group(&self) -> &ProcessGroup {
        &self.group
    }

    /// The share of `count` things that is this rank's: shares are contiguous, in the order of the ranks, and differ by
    /// one at most.
    pub fn share_of(&self, count: usize) -> std::ops::Range<usize> {
        let cut = |rank: usize| rank * count / self.world_size();
        cut(self.rank())..cut(self.rank() + 1)
    }

    /// Names what this rank does from now on, for the errors of those who wait for it, and as the name of the process,
    /// which `ps` and `top` show. No collective.
    pub fn set_phase(&self, phase: &str) {
        self.group.set_phase(phase);
        // The kernel keeps 15 bytes: `grpo 12 samplin`. Where it keeps none, nothing is lost.
        let name = phase.replace("step ", "").replace(':', "");
        let _ = fs_err::write("/proc/self/comm", name);
    }

    /// Names the part of a step that this rank is in, the step counted from 1.
    pub fn set_step_phase(&self, stage: &str, step: u64, what: &str) {
        self.set_phase(&format!("{stage} step {step}: {what}"));
    }

    /// Starts to sum `input` over ranks; each rank gets its part of the sum in `output`.
    ///
    /// # Shapes
    /// `input` `[world_size * n]`, `output` `[n]`, f32. Neither may be used before [`Ranks::finish`].
    ///
    /// # Errors
    /// When a rank is lost or does another operation.
    pub fn reduce_scatter(&self, input: &Tensor, output: &Tensor) -> Result<Work<'static>> {
        let mut output = output.shallow_clone();
        let work = self
            .group
            .reduce_scatter(input, &mut output, Reduction::Sum)?;
        Ok(work.detached())
    }

    /// Starts to put the `input` of all ranks after one another into `output`.
    ///
    /// # Shapes
    /// `input` `[n]`, `output` `[world_size * n]`. Neither may be used before [`Ranks::finish`].
    ///
    /// # Errors
    /// When a rank is lost or does another operation.
    pub fn all_gather(&self, input: &Tensor, output: &Tensor) -> Result<Work<'static>> {
        let mut output = output.shallow_clone();
        Ok(self.group.all_gather(input, &mut output)?.detached())
    }

    /// As [`Ranks::all_gather`], of tensors of any type: bytes travel.
    ///
    /// # Errors
    /// When a rank is lost or does another operation.
    pub fn all_gather_bytes(&self, input: &Tensor, output: &Tensor) -> Result<Work<'static>> {
        if input.kind() == Kind::Float {
            return self.all_gather(input, output);
        }
        self.all_gather(
            &input.f_view_dtype(Kind::Uint8)?,
            &output.f_view_dtype(Kind::Uint8)?,
        )
    }

    /// Waits until an operation is done.
    ///
    /// # Errors
    /// When a rank is lost or does another operation.
    pub fn finish(&self, work: Work<'_>) -> Result<()> {
        Ok(work.wait()?)
    }

    /// The values of every rank, in the order of the ranks. All bring equally many.
    ///
    /// # Errors
    /// When a rank is lost or does another operation.
    pub fn gather_values(&self, values: &[f64]) -> Result<Vec<Vec<f64>>> {
        if self.is_alone() || values.is_empty() {
            return Ok(vec![values.to_vec(); self.world_size()]);
        }
        let own = Tensor::from_slice(values).f_to_device(self.device())?;
        let size = [i64::try_from(values.len() * self.world_size()).unwrap_or(i64::MAX)];
        let mut all = Tensor::f_empty(size, (Kind::Double, self.device()))?;
        self.group.all_gather(&own, &mut all)?.wait()?;
        let all = Vec::<f64>::try_from(all.f_to_device(Device::Cpu)?)?;
        Ok(all.chunks(values.len()).map(<[f64]>::to_vec).collect())
    }

    /// Sums values over ranks, in the order of the ranks: all get the same bits.
    ///
    /// # Errors
    /// When a rank is lost or does another operation.
    pub fn sum(&self, values: &mut [f64]) -> Result<()> {
        let all = self.gather_values(values)?;
        for (index, value) in values.iter_mut().enumerate() {
            *value = all.iter().map(|of_rank| of_rank[index]).sum();
        }
        Ok(())
    }

    /// The bytes of every rank, in the order of the ranks; lengths may differ.
    ///
    /// # Errors
    /// On every rank, when one brings more than 1 GiB; when a rank is lost.
    pub fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        if self.is_alone() {
            return Ok(vec![bytes.to_vec()]);
        }
        let lengths = self.gather_values(&[bytes.len() as f64])?;
        let length_of = |rank: usize| count_of(lengths[rank][0]);
        let longest = (0..self.world_size()).map(length_of).max().unwrap_or(0);
        if longest > MAX_GATHERED_BYTES {
            let reason = format!("a rank brings {longest} bytes, more than {MAX_GATHERED_BYTES}");
            return Err(Error::stage("exchanging between ranks", reason));
        }
        if longest == 0 {
            return Ok(vec![Vec::new(); self.world_size()]);
        }
        let mut padded = bytes.to_vec();
        padded.resize(longest, 0);
        let own = Tensor::from_slice(&padded).f_to_device(self.device())?;
        let size = [i64::try_from(longest * self.world_size()).unwrap_or(i64::MAX)];
        let mut all = Tensor::f_empty(size, (Kind::Uint8, self.device()))?;
        self.group.all_gather(&own, &mut all)?.wait()?;
        let all = Vec::<u8>::try_from(all.f_to_device(Device::Cpu)?)?;
        let of_rank = |(rank, chunk): (usize, &[u8])| chunk[..length_of(rank)].to_vec();
        Ok(all.chunks(longest).enumerate().map(of_rank).collect())
    }

    /// The first rank's bytes, on every rank; those of the others are not looked at.
    ///
    /// # Errors
    /// As [`Ranks::gather_bytes`].
    pub fn first_rank_bytes(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let own = if self.is_first() { bytes } else { &[] };
        Ok(self.gather_bytes(own)?.swap_remove(0))
    }

    /// Whether it is so on some rank; the same answer on all.
    ///
    /// # Errors
    /// When a rank is lost.
    pub fn any(&self, own: bool) -> Result<bool> {
        let all = self.gather_values(&[f64::from(u8::from(own))])?;
        Ok(all.iter().any(|of_rank| of_rank[0] != 0.0))
    }

    /// The signal that some rank was asked to stop by; the same answer on all.
    ///
    /// # Errors
    /// When a rank is lost.
    pub fn stop_requested(&self, own: Option<i32>) -> Result<Option<i32>> {
        let all = self.gather_values(&[own.map_or(0.0, f64::from)])?;
        let first = all.iter().map(|of_rank| of_rank[0]).find(|&of| of != 0.0);
        #[expect(clippy::cast_possible_truncation, reason = "signals are small")]
        Ok(first.map(|signal| signal as i32))
    }

    /// Lets all ranks fail where one does, so that none waits for a rank that has given up. Whoever failed keeps its own
    /// error; the others learn whose it was.
    ///
    /// # Errors
    /// When a rank failed, or is lost.
    pub fn agree<T, E: SharedFailure>(&self, result: Result<T, E>) -> Result<T, E> {
        if self.is_alone() {
            return result;
        }
        let own = result.as_ref().err();
        let own = own.map(|error| (error.to_string(), error.is_input()));
        let own = own.as_ref();
        let first =
            self.first_failure(own.map(|(message, is_input)| (message.as_str(), *is_input)));
        match (first, result) {
            (_, Err(own)) => Err(own),
            (Err(lost), Ok(_)) => Err(lost.into()),
            (Ok(None), Ok(value)) => Ok(value),
            (Ok(Some((rank, message, is_input))), Ok(_)) => Err(Error::OtherRank {
                rank,
                message,
                is_input,
            }
            .into()),
        }
    }

    /// Failure of the first rank that has one: its rank, its message, and whether it found its input wrong. Every rank brings its own
    /// message, if it has failed.
    ///
    /// # Errors
    /// When a rank is lost.
    pub fn first_failure(
        &self,
        own: Option<(&str, bool)>,
    ) -> Result<Option<(usize, String, bool)>> {
        let kind = own.map_or(0.0, |(_, is_input)| if is_input { 2.0 } else { 1.0 });
        let kinds = self.gather_values(&[kind])?;
        let Some(rank) = kinds.iter().position(|of_rank| of_rank[0] != 0.0) else {
            return Ok(None);
        };
        let message = own.map_or("", |(message, _)| message);
        let end = message.floor_char_boundary(MAX_MESSAGE_BYTES);
        let messages = self.gather_bytes(&message.as_bytes()[..end])?;
        let message = String::from_utf8_lossy(&messages[rank]).into_owned();
        Ok(Some((rank, message, kinds[rank][0] > 1.0)))
    }

    /// Fails on every rank, naming those that differ, unless all bring the same text.
    ///
    /// # Errors
    /// When ranks differ, or one is lost.
    pub fn check_same(&self, label: &str, text: &str) -> Result<()> {
        let digest =
            u64::from(crc32fast::hash(text.as_bytes())) << 32 | (text.len() as u64 & 0xffff_ffff);
        Ok(self.group.check_same(label, digest)?)
    }

    /// Fails on every rank unless all have the same weights.
    ///
    /// # Errors
    /// When ranks differ, or one is lost.
    pub fn check_same_weights(&self, parameters: &[(String, Tensor)]) -> Result<()> {
        if self.is_alone() {
            return Ok(());
        }
        let sums = sums_of(parameters)?;
        self.check_same("the weights", &sums)
    }

    /// Checks that all have done the same operations in the same order so far.
    ///
    /// # Errors
    /// On every rank, naming those that differ.
    pub fn check_order(&self) -> Result<()> {
        let digest = self.group.order_digest();
        Ok(self.group.check_same("the order of operations", digest)?)
    }

    fn device(&self) -> Device {
        match self.group.backend() {
            Backend::Single => Device::Cpu,
            _ => self.group.device().unwrap_or(Device::Cpu),
        }
    }
}

/// A count that was exchanged as a number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are whole, not negative, and exact in f64"
)]
pub fn count_of(value: f64) -> usize {
    value as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_everything_is_its_own() {
        let ranks = Ranks::single();
        assert_eq!(ranks.share_of(7), 0..7);
        assert_eq!(ranks.gather_values(&[1.0, 2.0]).unwrap(), [[1.0, 2.0]]);
        assert_eq!(ranks.gather_bytes(b"abc").unwrap(), [b"abc"]);
        assert_eq!(ranks.first_rank_bytes(b"abc").unwrap(), b"abc");
        let error = ranks
            .agree::<(), Error>(Err(Error::stage("a", "b")))
            .unwrap_err();
        assert!(matches!(error, Error::Stage { .. }));
    }
}
