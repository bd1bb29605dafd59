//! Order of the trained parameters in the vector.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use tch::{TchError, Tensor};

use super::vector::{ALIGNMENT, narrow};
use crate::decay::is_decayed;

/// Where a parameter lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterSlot {
    /// Hugging Face name.
    pub name: String,
    /// Shape of the parameter.
    pub shape: Vec<i64>,
    /// Index of the first element.
    pub start: usize,
}

impl ParameterSlot {
    /// Range of elements.
    pub fn elements(&self) -> Range<usize> {
        let sizes = self.shape.iter();
        let num_elements: usize = sizes
            .map(|&size| usize::try_from(size).unwrap_or(0))
            .product();
        self.start..self.start + num_elements
    }

    /// The parameter as a view of `vector`, in which the element `origin` of all is the first.
    ///
    /// # Errors
    /// When `vector` is too short.
    pub fn view(&self, vector: &Tensor, origin: usize) -> Result<Tensor, TchError> {
        let Range { start, end } = self.elements();
        narrow(vector, &(start - origin..end - origin))?.f_view(self.shape.as_slice())
    }
}

/// Parameters that are computed with together: a layer, or what lies before and after the layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Range of elements.
    pub elements: Range<usize>,
    /// Weight decay applies to the elements before this one.
    pub(super) decay_end: usize,
    /// Range of slots in the layout.
    slots: Range<usize>,
}

/// The unit of what lies before the first layer and after the last.
pub const ROOT: usize = 0;

/// The unit of a layer.
pub fn unit_of_layer(layer: usize) -> usize {
    layer + 1
}

pub(super) fn unit_of(name: &str) -> usize {
    name.strip_prefix("model.layers.")
        .and_then(|rest| rest.split('.').next()?.parse().ok())
        .map_or(ROOT, unit_of_layer)
}

/// The order of parameters in the vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatLayout {
    slots: Vec<ParameterSlot>,
    units: Vec<Unit>,
}

impl FlatLayout {
    /// Of parameters with these shapes.
    pub fn new(shapes: &[(String, Vec<i64>)]) -> Self {
        let num_units = shapes.iter().map(|(name, _)| unit_of(name) + 1).max();
        let mut slots = Vec::with_capacity(shapes.len());
        let mut units = Vec::new();
        let mut end = 0;
        for unit in 0..num_units.unwrap_or(0) {
            let (start, first_slot, mut decay_end) = (end, slots.len(), end);
            for decays in [true, false] {
                for (name, shape) in shapes {
                    if unit_of(name) == unit && is_decayed(name, shape.len()) == decays {
                        let slot = ParameterSlot {
                            name: name.clone(),
                            shape: shape.clone(),
                            start: end,
                        };
                        end = slot.elements().end.next_multiple_of(ALIGNMENT);
                        slots.push(slot);
                    }
                }
                if decays {
                    decay_end = end;
                }
            }
            units.push(Unit {
                elements: start..end,
                decay_end,
                slots: first_slot..slots.len(),
            });
        }
        Self { slots, units }
    }

    /// Of parameters that exist.
    pub fn of(parameters: &[(String, Tensor)]) -> Self {
        let shapes = parameters.iter();
        let shapes: Vec<_> = shapes
            .map(|(name, tensor)| (name.clone(), tensor.size()))
            .collect();
        Self::new(&shapes)
    }

    /// The parameters in the order of the vector.
    pub fn slots(&self) -> &[ParameterSlot] {
        &self.slots
    }

    /// The units in the order of the vector.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// The parameters of a unit.
    pub fn slots_of(&self, unit: usize) -> &[ParameterSlot] {
        &self.slots[self.units[unit].slots.clone()]
    }

    /// Elements of the vector.
    pub fn num_elements(&self) -> usize {
        self.units.last().map_or(0, |unit| unit.elements.end)
    }
}
