//! First line of a node, and the check that it belongs to the same launch.

use serde::{Deserialize, Serialize};

use crate::ids::NodeRank;
use crate::plan::{LaunchPlan, Nodes};

/// Name in the first line, by which other programs are recognised.
const PROTOCOL: &str = "asyncthink-launch";

/// Version of the messages; raised with every change.
const VERSION: u32 = 1;

/// Longest host name that is taken.
const MAX_HOST_BYTES: usize = 255;

/// The first line of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    protocol: String,
    version: u32,
    program_version: String,
    run_id: String,
    num_nodes: u32,
    pub(crate) node_rank: Option<NodeRank>,
    pub(crate) num_local_ranks: u32,
    pub(crate) host: String,
}

/// Part of a hello that every version has.
#[derive(Deserialize)]
struct HelloHead {
    protocol: String,
    version: u32,
}

impl Hello {
    pub(crate) fn of(plan: &LaunchPlan) -> Self {
        let node_rank = match &plan.nodes {
            Nodes::One => None,
            Nodes::Several { node_rank, .. } => *node_rank,
        };
        let num_local_ranks = plan.num_local_ranks.get();
        let run_id = plan.run_id.as_str();
        Self::new(
            run_id,
            plan.nodes.num(),
            node_rank,
            num_local_ranks,
            &plan.host,
        )
    }

    fn new(
        run_id: &str,
        num_nodes: u32,
        node_rank: Option<NodeRank>,
        num_local_ranks: u32,
        host: &str,
    ) -> Self {
        Self {
            protocol: PROTOCOL.to_owned(),
            version: VERSION,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            run_id: run_id.to_owned(),
            num_nodes,
            node_rank,
            num_local_ranks,
            host: host.to_owned(),
        }
    }

    /// Reads a first line that fits `expected`, the hello of node 0.
    ///
    /// The error says to the other side what does not fit.
    pub(crate) fn parse(line: &[u8], expected: &Self) -> Result<Self, String> {
        let unreadable =
            |error: serde_json::Error| format!("its first line cannot be read: {error}");
        let head: HelloHead = serde_json::from_slice(line).map_err(unreadable)?;
        differs("the protocol", &head.protocol, &expected.protocol)?;
        differs(
            "the version of the protocol",
            &head.version,
            &expected.version,
        )?;
        let hello: Self = serde_json::from_slice(line).map_err(unreadable)?;
        let program = "the version of the program";
        differs(program, &hello.program_version, &expected.program_version)?;
        differs("`--rdzv-id`", &hello.run_id, &expected.run_id)?;
        differs("`--nnodes`", &hello.num_nodes, &expected.num_nodes)?;
        if hello.host.len() > MAX_HOST_BYTES || hello.host.chars().any(char::is_control) {
            return Err("its host name cannot be shown".to_owned());
        }
        Ok(hello)
    }
}

fn differs<T: PartialEq + std::fmt::Display>(
    what: &str,
    got: &T,
    expected: &T,
) -> Result<(), String> {
    if got == expected {
        Ok(())
    } else {
        // The other side's text goes back to it alone.
        Err(format!(
            "{what} is `{expected}` on node 0 and `{got}` on this one"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(run_id: &str, num_nodes: u32) -> Hello {
        Hello::new(run_id, num_nodes, None, 2, "there")
    }

    fn parse(hello: &Hello) -> Result<Hello, String> {
        let line = serde_json::to_vec(hello).expect("JSON");
        Hello::parse(&line, &self::hello("a", 2))
    }

    #[test]
    fn a_hello_that_fits_is_taken() {
        let parsed = parse(&hello("a", 2)).expect("fits");
        assert_eq!((parsed.num_local_ranks, parsed.host.as_str()), (2, "there"));
    }

    #[test]
    fn a_mismatch_is_named() {
        let refused = |hello: &Hello| parse(hello).expect_err("does not fit");
        assert_eq!(
            refused(&hello("b", 2)),
            "`--rdzv-id` is `a` on node 0 and `b` on this one"
        );
        assert!(refused(&hello("a", 3)).starts_with("`--nnodes` is `2`"));
        let mut other = hello("a", 2);
        other.version = 2;
        assert!(refused(&other).starts_with("the version of the protocol is `1`"));
        other = hello("a", 2);
        other.program_version = "0.0.0".to_owned();
        assert!(refused(&other).starts_with("the version of the program"));
        other = hello("a", 2);
        other.host = "a\u{1b}".to_owned();
        assert!(refused(&other).contains("host name"));
        let foreign = Hello::parse(b"GET / HTTP/1.1\r\n", &hello("a", 2));
        assert!(
            foreign
                .expect_err("another program")
                .contains("cannot be read")
        );
        // Another version may say other things.
        let later = br#"{"protocol": "asyncthink-launch", "version": 9, "x": 1}"#;
        let later = Hello::parse(later, &hello("a", 2)).expect_err("a later version");
        assert!(later.starts_with("the version of the protocol"), "{later}");
    }
}
