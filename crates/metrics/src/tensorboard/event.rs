//! The protocol buffer messages of TensorBoard that scalars need: `Event` and the messages in it, by their field numbers.

const WIRE_VARINT: u64 = 0;
const WIRE_64_BIT: u64 = 1;
const WIRE_BYTES: u64 = 2;
const WIRE_32_BIT: u64 = 5;

/// Version of event files, which their first event states.
const FILE_VERSION: &str = "brain.Event:2";

/// `SessionLog.START`: events of this step and later ones in earlier files are void.
const SESSION_START: u64 = 1;

/// The event that a file begins with.
pub(super) fn file_version(wall_time: f64) -> Vec<u8> {
    let mut event = head(wall_time, 0);
    bytes(&mut event, 3, FILE_VERSION.as_bytes());
    event
}

/// The event that voids what earlier files hold of `step` and later ones.
pub(super) fn session_start(wall_time: f64, step: u64) -> Vec<u8> {
    let mut log = Vec::new();
    varint_field(&mut log, 1, SESSION_START);
    let mut event = head(wall_time, step);
    bytes(&mut event, 7, &log);
    event
}

/// Scalars of a step.
pub(super) fn scalars(wall_time: f64, step: u64, values: &[(String, f32)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut entry = Vec::new();
        bytes(&mut entry, 1, tag.as_bytes());
        key(&mut entry, 2, WIRE_32_BIT);
        entry.extend(value.to_le_bytes());
        bytes(&mut summary, 1, &entry);
    }
    let mut event = head(wall_time, step);
    bytes(&mut event, 5, &summary);
    event
}

/// The step of an event; 0 where it states none, `None` where the bytes are no event.
pub(super) fn step_of(mut event: &[u8]) -> Option<u64> {
    let mut step = 0;
    while !event.is_empty() {
        let key = take_varint(&mut event)?;
        match (key >> 3, key & 7) {
            (2, WIRE_VARINT) => step = take_varint(&mut event)?,
            (_, WIRE_VARINT) => {
                take_varint(&mut event)?;
            }
            (_, WIRE_64_BIT) => event = event.get(8..)?,
            (_, WIRE_32_BIT) => event = event.get(4..)?,
            (_, WIRE_BYTES) => {
                let len = usize::try_from(take_varint(&mut event)?).ok()?;
                event = event.get(len..)?;
            }
            _ => return None,
        }
    }
    Some(step)
}

fn head(wall_time: f64, step: u64) -> Vec<u8> {
    let mut event = Vec::new();
    key(&mut event, 1, WIRE_64_BIT);
    event.extend(wall_time.to_le_bytes());
    // A zero is left out, as in every message of protocol buffers 3.
    if step > 0 {
        varint_field(&mut event, 2, step);
    }
    event
}

fn bytes(message: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(message, field, WIRE_BYTES);
    varint(message, value.len() as u64);
    message.extend(value);
}

fn varint_field(message: &mut Vec<u8>, field: u64, value: u64) {
    key(message, field, WIRE_VARINT);
    varint(message, value);
}

fn key(message: &mut Vec<u8>, field: u64, wire: u64) {
    varint(message, field << 3 | wire);
}

/// Seven bits a byte, the lowest first.
fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(low_byte(value) | 0x80);
        value >>= 7;
    }
    message.push(low_byte(value));
}

fn low_byte(value: u64) -> u8 {
    value.to_le_bytes()[0]
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_back() {
        for step in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let values = [("loss".to_owned(), 0.5)];
            assert_eq!(step_of(&scalars(1.5, step, &values)), Some(step));
            assert_eq!(step_of(&session_start(1.5, step)), Some(step));
        }
        assert_eq!(step_of(&file_version(1.5)), Some(0));
        let event = scalars(1.5, 7, &[("a".to_owned(), 1.0)]);
        assert_eq!(step_of(&event[..event.len() - 1]), None);
        assert_eq!(step_of(&[0xff]), None);
    }
}
