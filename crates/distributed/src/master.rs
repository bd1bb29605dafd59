//! f32 master weights: what the optimizer updates where the parameters are of another type, or where its state is in host
//! memory. A rank holds those of the elements that it owns.

use asyncthink_model::VisitParameter;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::flat::{FlatLayout, ParameterSlot, Piece, narrow};

/// Hands every trained parameter in f32 to a visitor, from where the model was read or drawn.
pub type ReadParameters<'a> = &'a mut dyn FnMut(VisitParameter<'_>) -> asyncthink_model::Result<()>;

/// Elements of a part that is updated at a time where the state is in host memory: 64 MiB in f32.
const HOST_ELEMENTS: usize = 1 << 24;

/// Where the optimizer keeps its state, and where its weights come from.
#[derive(Default)]
pub struct StateOptions<'a> {
    /// Whether master weights and moments are in host memory, where the CPU updates them.
    pub on_host: bool,
    /// f32 values of the parameters, to be given where these are of another type: they alone would lose what rounding took.
    pub read: Option<ReadParameters<'a>>,
}

/// Master weights of a rank, f32 `[owned]`.
#[derive(Debug)]
pub(crate) struct Master {
    pub(crate) values: Tensor,
    /// Room for gradients and weights on their way between device and host; none where the state is on the device.
    staging: Option<Staging>,
}

#[derive(Debug)]
struct Staging {
    gradients: Tensor,
    weights: Tensor,
}

/// A part of a rank's elements that is updated at once.
pub(crate) struct Portion {
    /// Master weights.
    pub(crate) master: Tensor,
    /// Gradients beside them.
    pub(crate) gradients: Tensor,
}

/// Zeros of f32; in host memory that a GPU copies from and to by itself, where `device` is one and `on_host` says so.
pub(crate) fn zeros(num_elements: i64, device: Device, on_host: bool) -> Result<Tensor> {
    zeros_of(Kind::Float, num_elements, device, on_host)
}

fn zeros_of(kind: Kind, num_elements: i64, device: Device, on_host: bool) -> Result<Tensor> {
    if !on_host {
        return Ok(Tensor::f_zeros([num_elements], (kind, device))?);
    }
    let zeros = Tensor::f_zeros([num_elements], (kind, Device::Cpu))?;
    Ok(if device.is_cuda() {
        zeros.f_pin_memory(device)?
    } else {
        zeros
    })
}

impl Master {
    /// Room for `num_owned` values beside parameters of `kind` on `device`.
    pub(crate) fn new(num_owned: i64, kind: Kind, device: Device, on_host: bool) -> Result<Self> {
        let staging = || -> Result<Staging> {
            let num_elements = num_owned.min(crate::flat::signed(HOST_ELEMENTS));
            Ok(Staging {
                gradients: zeros(num_elements, device, true)?,
                weights: zeros_of(kind, num_elements, device, true)?,
            })
        };
        Ok(Self {
            values: zeros(num_owned, device, on_host)?,
            staging: on_host.then(staging).transpose()?,
        })
    }

    /// Whether the state is in host memory.
    pub(crate) fn is_on_host(&self) -> bool {
        self.staging.is_some()
    }

    /// Takes over f32 values of all parameters, of which `pieces` are this rank's.
    pub(crate) fn fill(
        &self,
        layout: &FlatLayout,
        pieces: &[Piece],
        read: ReadParameters<'_>,
    ) -> Result<()> {
        fill_own_parts(layout, pieces, &self.values, read, &mut |_, _| Ok(()))
    }

    /// The ranges of `num_elements` that are updated one after another.
    pub(crate) fn portions(&self, num_elements: usize) -> Vec<std::ops::Range<usize>> {
        let step = if self.is_on_host() {
            HOST_ELEMENTS
        } else {
            num_elements.max(1)
        };
        (0..num_elements)
            .step_by(step)
            .map(|start| start..num_elements.min(start + step))
            .collect()
    }

    /// Brings gradients of a portion to the master weights `owned`.
    pub(crate) fn fetch(
        &self,
        owned: &std::ops::Range<usize>,
        gradients: &Tensor,
    ) -> Result<Portion> {
        let gradients = match &self.staging {
            None => gradients.shallow_clone(),
            Some(staging) => {
                let mut here = narrow(&staging.gradients, &(0..owned.len()))?;
                here.f_copy_(gradients)?;
                here
            }
        };
        Ok(Portion {
            master: narrow(&self.values, owned)?,
            gradients,
        })
    }

    /// Writes the master weights `owned` into `parameters`, rounded to their type.
    pub(crate) fn write(
        &self,
        owned: &std::ops::Range<usize>,
        parameters: &mut Tensor,
    ) -> Result<()> {
        let master = narrow(&self.values, owned)?;
        match &self.staging {
            None => parameters.f_copy_(&master)?,
            Some(staging) => {
                for portion in self.portions(owned.len()) {
                    // Rounded here, so that fewer bytes travel.
                    let mut rounded = narrow(&staging.weights, &(0..portion.len()))?;
                    rounded.f_copy_(&narrow(&master, &portion)?)?;
                    narrow(parameters, &portion)?.f_copy_(&rounded)?;
                }
            }
        }
        Ok(())
    }
}

/// Copies what `pieces` say of every parameter that `read` hands over into `own_values`; `also` sees each of them.
pub(crate) fn fill_own_parts(
    layout: &FlatLayout,
    pieces: &[Piece],
    own_values: &Tensor,
    read: ReadParameters<'_>,
    also: &mut dyn FnMut(&str, &Tensor) -> Result<()>,
) -> Result<()> {
    let mut failed = None;
    read(&mut |name, tensor| {
        let copied = layout
            .slots()
            .iter()
            .find(|slot| slot.name == name)
            .ok_or_else(|| Error::stage("sharing out the weights", format!("`{name}` is unknown")))
            .and_then(|slot| {
                also(name, &tensor)?;
                copy_own_part(slot, &tensor, pieces, own_values)
            });
        // The visitor's errors are of another crate.
        if let (Err(error), None) = (copied, &failed) {
            failed = Some(error);
        }
        Ok(())
    })?;
    failed.map_or(Ok(()), Err)
}

/// Copies what a rank owns of a parameter.
fn copy_own_part(
    slot: &ParameterSlot,
    parameter: &Tensor,
    pieces: &[Piece],
    own_values: &Tensor,
) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let whole = slot.elements();
    let flat = parameter.f_reshape([-1])?;
    for Piece {
        elements,
        owned_start,
    } in pieces
    {
        let start = whole.start.max(elements.start);
        let end = whole.end.min(elements.end);
        if start < end {
            let from = narrow(&flat, &(start - whole.start..end - whole.start))?;
            let to = owned_start + start - elements.start;
            narrow(own_values, &(to..to + end - start))?.f_copy_(&from)?;
        }
    }
    Ok(())
}
