//! The operations of a process group.

use tch::{Device, Kind, Tensor};

use super::ffi;
use super::flight::Operation;
use super::group::{ProcessGroup, Sizes};
use super::options::Backend;
use super::same::{Difference, digest_of};
use super::work::Work;
use crate::error::{Error, OpContext, Result};
use crate::ffi::pointers;

/// How the tensors of all ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Their sum.
    Sum,
    /// The largest, element by element.
    Max,
    /// The smallest, element by element.
    Min,
}

impl Reduction {
    /// Its number in `cpp/collectives.cpp`.
    fn code(self) -> i32 {
        match self {
            Reduction::Sum => 0,
            Reduction::Max => 1,
            Reduction::Min => 2,
        }
    }
}

/// All tensors are contiguous and on the group's device, of one kind in one operation, and of the same sizes on all
/// ranks. A tensor without elements moves nothing. No operation is recorded in a graph.
impl ProcessGroup {
    /// Starts to replace `tensor` by its reduction over all ranks, which becomes the same on all to the last bit.
    ///
    /// # Errors
    /// A tensor of the wrong layout or device, or a failure of the group.
    pub fn all_reduce<'t>(&self, tensor: &'t mut Tensor, reduction: Reduction) -> Result<Work<'t>> {
        self.all_reduce_list(std::slice::from_mut(tensor), reduction)
    }

    /// As [`ProcessGroup::all_reduce`] for several tensors of one kind, joined into one operation.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce`].
    pub fn all_reduce_list<'t>(
        &self,
        tensors: &'t mut [Tensor],
        reduction: Reduction,
    ) -> Result<Work<'t>> {
        let operation = Operation::AllReduce;
        let mut bytes = 0;
        for tensor in tensors.iter() {
            bytes += self.check(operation, "tensor", tensor, tensors.first())?;
        }
        let tensors: Vec<&Tensor> = tensors.iter().filter(|tensor| tensor.numel() > 0).collect();
        if tensors.is_empty() {
            return Ok(Work::done());
        }
        let pointers = pointers(&tensors);
        let code = reduction.code();
        let sizes = Sizes::both(bytes, u64::from(code.unsigned_abs()));
        self.start(operation, sizes, |group, timeout, output, failure| {
            // SAFETY: group and tensors live and the places outlive the call; c10d keeps references of its own.
            unsafe {
                ffi::asyncthink_all_reduce(
                    group,
                    pointers.as_ptr(),
                    pointers.len(),
                    code,
                    timeout,
                    output,
                    failure,
                )
            }
        })
    }

    /// Starts to replace `tensor` by that of rank `root`.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce`], or a `root` that is no rank.
    pub fn broadcast<'t>(&self, tensor: &'t mut Tensor, root: usize) -> Result<Work<'t>> {
        let operation = Operation::Broadcast;
        let bytes = self.check(operation, "tensor", tensor, None)?;
        if root >= self.world_size() {
            let expected = format!("a rank below {}", self.world_size());
            return Err(wrong(operation, "root", expected, root.to_string()));
        }
        if bytes == 0 {
            return Ok(Work::done());
        }
        let sizes = Sizes {
            bytes,
            put_in: if root == self.rank() { bytes } else { 0 },
            detail: root as u64,
        };
        let root = ffi::int(root);
        let tensor = tensor.as_ptr();
        self.start(operation, sizes, |group, timeout, output, failure| {
            // SAFETY: group and tensor live and the places outlive the call; c10d keeps a reference of its own.
            unsafe { ffi::asyncthink_broadcast(group, tensor, root, timeout, output, failure) }
        })
    }

    /// Starts to fill `output` with this rank's part of the reduction of `input` over all ranks: part `r` of equal
    /// parts, in memory order, goes to rank `r`.
    ///
    /// # Shapes
    /// `input` has as many elements as `output` on all ranks together.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce`], or sizes that do not fit.
    pub fn reduce_scatter<'t>(
        &self,
        input: &'t Tensor,
        output: &'t mut Tensor,
        reduction: Reduction,
    ) -> Result<Work<'t>> {
        let operation = Operation::ReduceScatter;
        let bytes = self.check(operation, "input", input, None)?;
        self.check(operation, "output", output, Some(input))?;
        self.check_whole(operation, ("output", output), ("input", input))?;
        if self.backend() == Backend::Single {
            copy(operation, input, output)?;
        }
        if bytes == 0 {
            return Ok(Work::done());
        }
        let code = reduction.code();
        let sizes = Sizes::both(bytes, u64::from(code.unsigned_abs()));
        let native = self.backend() == Backend::Nccl;
        let (input, target) = (input.as_ptr(), output.as_ptr());
        self.start(operation, sizes, |group, timeout, output, failure| {
            // SAFETY: group and tensors live and the places outlive the call; c10d keeps references of its own.
            unsafe {
                ffi::asyncthink_reduce_scatter(
                    group, input, target, code, timeout, native, output, failure,
                )
            }
        })
    }

    /// Starts to fill `output` with the `input` of all ranks, in the order of the ranks.
    ///
    /// # Shapes
    /// `output` has as many elements as `input` on all ranks together.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce`], or sizes that do not fit.
    pub fn all_gather<'t>(&self, input: &'t Tensor, output: &'t mut Tensor) -> Result<Work<'t>> {
        let operation = Operation::AllGather;
        let bytes = self.check(operation, "input", input, None)?;
        self.check(operation, "output", output, Some(input))?;
        self.check_whole(operation, ("input", input), ("output", output))?;
        if self.backend() == Backend::Single {
            copy(operation, input, output)?;
        }
        if bytes == 0 {
            return Ok(Work::done());
        }
        let (input, target) = (input.as_ptr(), output.as_ptr());
        self.start(
            operation,
            Sizes::both(bytes, 0),
            |group, timeout, output, failure| {
                // SAFETY: group and tensors live and the places outlive the call; c10d keeps references of its own.
                unsafe {
                    ffi::asyncthink_all_gather(group, input, target, timeout, output, failure)
                }
            },
        )
    }

    /// Waits until all ranks have come here.
    ///
    /// # Errors
    /// A failure of the group.
    pub fn barrier(&self) -> Result<()> {
        let cuda_device = match self.device() {
            Some(Device::Cuda(index)) => ffi::int(index),
            _ => -1,
        };
        self.start(
            Operation::Barrier,
            Sizes::both(0, 0),
            |group, timeout, output, failure| {
                // SAFETY: the group lives and the places outlive the call.
                unsafe { ffi::asyncthink_barrier(group, timeout, cuda_device, output, failure) }
            },
        )?
        .wait()
    }

    /// Starts to hand `tensor` to rank `to`, which must call [`ProcessGroup::recv`]; several between the same two ranks
    /// are matched in their order.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce`], or a `to` that is no other rank.
    pub fn send<'t>(&self, tensor: &'t Tensor, to: usize) -> Result<Work<'t>> {
        let operation = Operation::Send;
        let bytes = self.check(operation, "tensor", tensor, None)?;
        let to = self.other_rank(operation, "to", to)?;
        if bytes == 0 {
            return Ok(Work::done());
        }
        let tensor = tensor.as_ptr();
        self.start(
            operation,
            Sizes::both(bytes, 0),
            |group, _, output, failure| {
                // SAFETY: group and tensor live and the places outlive the call; c10d keeps a reference of its own.
                unsafe { ffi::asyncthink_send(group, tensor, to, output, failure) }
            },
        )
    }

    /// Starts to fill `tensor` with what rank `from` sends.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce`], or a `from` that is no other rank.
    pub fn recv<'t>(&self, tensor: &'t mut Tensor, from: usize) -> Result<Work<'t>> {
        let operation = Operation::Recv;
        let bytes = self.check(operation, "tensor", tensor, None)?;
        let from = self.other_rank(operation, "from", from)?;
        if bytes == 0 {
            return Ok(Work::done());
        }
        let tensor = tensor.as_ptr();
        self.start(
            operation,
            Sizes::both(bytes, 0),
            |group, _, output, failure| {
                // SAFETY: group and tensor live and the places outlive the call; c10d keeps a reference of its own.
                unsafe { ffi::asyncthink_recv(group, tensor, from, output, failure) }
            },
        )
    }

    /// Compares `digest` between ranks, under a `label` that says what it is of, such as `data order of epoch 2`.
    ///
    /// # Errors
    /// [`Error::RanksDiffer`] with who has what; or a failure of the group.
    pub fn check_same(&self, label: &str, digest: u64) -> Result<()> {
        const OP: &str = "check_same";
        let Some(device) = self.device() else {
            return Ok(());
        };
        let label_digest = digest_of(label);
        let own = [label_digest, digest].map(|word| i64::from_ne_bytes(word.to_ne_bytes()));
        let own = Tensor::f_from_slice(&own)
            .and_then(|own| own.f_to_device(device))
            .op(OP)?;
        let num_words = 2 * i64::from(ffi::int(self.world_size()));
        let mut all = Tensor::f_zeros([num_words], (Kind::Int64, device)).op(OP)?;
        self.all_gather(&own, &mut all)?.wait()?;
        let all: Vec<i64> = all
            .f_to_device(Device::Cpu)
            .and_then(|all| Vec::try_from(&all))
            .op(OP)?;
        let values: Vec<(u64, u64)> = all
            .chunks_exact(2)
            .map(|pair| (pair[0].cast_unsigned(), pair[1].cast_unsigned()))
            .collect();
        match Difference::find(label, label_digest, &values) {
            Some(difference) => Err(Error::RanksDiffer(Box::new(difference))),
            None => Ok(()),
        }
    }

    /// Checks layout and device, and the kind if there is another tensor to be like; returns the size in bytes.
    fn check(
        &self,
        operation: Operation,
        argument: &'static str,
        tensor: &Tensor,
        like: Option<&Tensor>,
    ) -> Result<u64> {
        let wrong = |expected: &str, got: String| wrong(operation, argument, expected.into(), got);
        if !tensor.defined() {
            return Err(wrong("a tensor", "undefined".to_owned()));
        }
        if !tensor.is_contiguous() {
            let got = format!("strided by {:?}", tensor.stride());
            return Err(wrong("contiguous", got));
        }
        if let Some(device) = self.device().filter(|device| *device != tensor.device()) {
            let got = format!("on {:?}", tensor.device());
            return Err(wrong(&format!("on {device:?}"), got));
        }
        let kind = tensor.f_kind().op(operation.name())?;
        if let Some(like) = like {
            let expected = like.f_kind().op(operation.name())?;
            if expected != kind {
                return Err(wrong(&format!("of kind {expected:?}"), format!("{kind:?}")));
            }
        }
        Ok(tensor.numel() as u64 * kind.elt_size_in_bytes() as u64)
    }

    /// Checks that `whole` is as large as all ranks' `part` together.
    fn check_whole(
        &self,
        operation: Operation,
        (part_name, part): (&'static str, &Tensor),
        (whole_name, whole): (&'static str, &Tensor),
    ) -> Result<()> {
        let expected = part.numel() * self.world_size();
        if whole.numel() == expected {
            return Ok(());
        }
        let size = part.numel();
        Err(wrong(
            operation,
            whole_name,
            format!("{expected} elements, {size} of `{part_name}` for each rank"),
            whole.numel().to_string(),
        ))
    }

    fn other_rank(&self, operation: Operation, argument: &'static str, rank: usize) -> Result<i32> {
        if rank < self.world_size() && rank != self.rank() {
            return Ok(ffi::int(rank));
        }
        let expected = format!("another rank than {} of {}", self.rank(), self.world_size());
        Err(wrong(operation, argument, expected, rank.to_string()))
    }
}

impl Sizes {
    /// Of an operation into which this rank puts all of its bytes.
    fn both(bytes: u64, detail: u64) -> Self {
        Sizes {
            bytes,
            put_in: bytes,
            detail,
        }
    }
}

fn wrong(operation: Operation, argument: &'static str, expected: String, got: String) -> Error {
    Error::Argument {
        op: operation.name(),
        argument,
        expected,
        got,
    }
}

/// What a collective between one rank comes to.
fn copy(operation: Operation, from: &Tensor, to: &Tensor) -> Result<()> {
    let from = from.f_detach().op(operation.name())?;
    let mut to = to.f_detach().op(operation.name())?;
    let from = from.f_view_as(&to).op(operation.name())?;
    to.f_copy_(&from).op(operation.name())
}
