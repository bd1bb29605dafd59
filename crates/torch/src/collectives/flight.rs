//! What a rank has done: its last operation, its traffic, and a digest of their order.

/// An operation between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// The meeting of all ranks when a group is made.
    Join,
    /// Every rank gets the reduction of all tensors.
    AllReduce,
    /// Every rank gets the root's tensor.
    Broadcast,
    /// Every rank gets its part of the reduction of all tensors.
    ReduceScatter,
    /// Every rank gets the tensors of all.
    AllGather,
    /// No rank goes on before all have come.
    Barrier,
    /// As `Barrier`, over the store, naming those who did not come.
    MonitoredBarrier,
    /// One rank hands a tensor to another.
    Send,
    /// One rank takes a tensor from another.
    Recv,
}

impl Operation {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Join => "join",
            Operation::AllReduce => "all_reduce",
            Operation::Broadcast => "broadcast",
            Operation::ReduceScatter => "reduce_scatter",
            Operation::AllGather => "all_gather",
            Operation::Barrier => "barrier",
            Operation::MonitoredBarrier => "monitored_barrier",
            Operation::Send => "send",
            Operation::Recv => "recv",
        }
    }

    /// Whether all ranks take part, so that it has a place in their common order.
    pub(super) fn is_collective(self) -> bool {
        !matches!(self, Operation::Send | Operation::Recv)
    }
}

/// One operation as a rank started it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlightRecord {
    /// What it was.
    pub operation: Operation,
    /// Number of collectives that the rank had started by then, this one included; the same on all ranks.
    pub sequence: u64,
    /// The phase of the caller, such as `grpo step 12: reduce gradients`; empty for none.
    pub phase: String,
    /// Size of the tensor that the rank put in, or, where it puts in none, takes out.
    pub bytes: u64,
}

/// Bytes that this rank put into operations, by kind. They are the sizes of tensors; what travels over the network
/// depends on the backend's algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Into `all_reduce`.
    pub all_reduce_bytes: u64,
    /// Into `broadcast`, as its root.
    pub broadcast_bytes: u64,
    /// Into `reduce_scatter`.
    pub reduce_scatter_bytes: u64,
    /// Into `all_gather`, with the 16 bytes of each `check_same`.
    pub all_gather_bytes: u64,
    /// Into `send`.
    pub send_bytes: u64,
}

impl Traffic {
    /// All kinds together.
    pub fn total_bytes(&self) -> u64 {
        self.all_reduce_bytes
            + self.broadcast_bytes
            + self.reduce_scatter_bytes
            + self.all_gather_bytes
            + self.send_bytes
    }

    /// Bytes by the name of the operation.
    pub fn by_kind(&self) -> [(&'static str, u64); 5] {
        [
            (Operation::AllReduce.name(), self.all_reduce_bytes),
            (Operation::Broadcast.name(), self.broadcast_bytes),
            (Operation::ReduceScatter.name(), self.reduce_scatter_bytes),
            (Operation::AllGather.name(), self.all_gather_bytes),
            (Operation::Send.name(), self.send_bytes),
        ]
    }

    fn add(&mut self, operation: Operation, bytes: u64) {
        let counter = match operation {
            Operation::AllReduce => &mut self.all_reduce_bytes,
            Operation::Broadcast => &mut self.broadcast_bytes,
            Operation::ReduceScatter => &mut self.reduce_scatter_bytes,
            Operation::AllGather => &mut self.all_gather_bytes,
            Operation::Send => &mut self.send_bytes,
            Operation::Join
            | Operation::Barrier
            | Operation::MonitoredBarrier
            | Operation::Recv => return,
        };
        *counter += bytes;
    }
}

/// The running account of one rank.
#[derive(Debug, Default)]
pub(super) struct Flight {
    sequence: u64,
    digest: u64,
    phase: String,
    traffic: Traffic,
    last: Option<FlightRecord>,
}

impl Flight {
    /// Notes an operation that starts now. `put_in` counts as traffic; `detail` is what must agree between ranks
    /// beside kind and size, such as the root.
    pub(super) fn start(
        &mut self,
        operation: Operation,
        bytes: u64,
        put_in: u64,
        detail: u64,
    ) -> FlightRecord {
        if operation.is_collective() {
            self.sequence += 1;
            for byte in operation.name().bytes() {
                self.mix(u64::from(byte));
            }
            self.mix(bytes);
            self.mix(detail);
        }
        self.traffic.add(operation, put_in);
        let record = FlightRecord {
            operation,
            sequence: self.sequence,
            phase: self.phase.clone(),
            bytes,
        };
        self.last = Some(record.clone());
        record
    }

    /// One step of FNV-1a over 64-bit words: order matters, and that is all it is for.
    fn mix(&mut self, word: u64) {
        self.digest = (self.digest ^ word)
            .wrapping_mul(0x0100_0000_01b3)
            .rotate_left(29);
    }

    pub(super) fn set_phase(&mut self, phase: String) {
        self.phase = phase;
    }

    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(super) fn phase(&self) -> &str {
        &self.phase
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.traffic
    }

    pub(super) fn last(&self) -> Option<&FlightRecord> {
        self.last.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_tells_order_size_and_root_apart() {
        let digest = |operations: &[(Operation, u64, u64)]| {
            let mut flight = Flight::default();
            for &(operation, bytes, root) in operations {
                flight.start(operation, bytes, bytes, root);
            }
            flight.digest()
        };
        let (reduce, gather) = (Operation::AllReduce, Operation::AllGather);
        let base = digest(&[(reduce, 8, 0), (gather, 8, 0)]);
        assert_eq!(base, digest(&[(reduce, 8, 0), (gather, 8, 0)]));
        assert_ne!(base, digest(&[(gather, 8, 0), (reduce, 8, 0)]));
        assert_ne!(base, digest(&[(reduce, 8, 0), (gather, 16, 0)]));
        assert_ne!(base, digest(&[(reduce, 8, 0)]));
        let from = |root| digest(&[(Operation::Broadcast, 8, root)]);
        assert_ne!(from(0), from(1));
        assert_eq!(
            base,
            digest(&[(reduce, 8, 0), (Operation::Send, 4, 1), (gather, 8, 0)]),
            "sends are between two ranks and have no common order"
        );
    }
}
