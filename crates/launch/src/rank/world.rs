//! World of a rank, read from its environment.

use std::io;
use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error_file;
use super::launcher::launcher_identity;
use crate::error::Error;
use crate::ids::{LocalRank, Rank};

/// The variable that names the file for a rank's reason to fail.
const ERROR_FILE: &str = "TORCHELASTIC_ERROR_FILE";

/// The rank of this process, and the others.
///
/// Made from an environment in which nothing contradicts: `rank` is below
/// `world_size`, `local_rank` below `local_world_size`, and neither local
/// number above its global one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_field_names,
    reason = "the names of the variables that all launchers set"
)]
pub struct World {
    rank: Rank,
    world_size: u32,
    local_rank: LocalRank,
    local_world_size: u32,
    master: Option<Master>,
    restart_count: u32,
    run_id: Option<String>,
    use_agent_store: bool,
    error_file: Option<PathBuf>,
}

/// Where the ranks meet: the address of their store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// Host name or address.
    pub addr: String,
    /// Port, never 0.
    pub port: u16,
}

impl World {
    /// A process on its own.
    pub fn single() -> Self {
        Self {
            rank: Rank::new(0),
            world_size: 1,
            local_rank: LocalRank::new(0),
            local_world_size: 1,
            master: None,
            restart_count: 0,
            run_id: None,
            use_agent_store: false,
            error_file: None,
        }
    }

    /// The world of this process's environment.
    ///
    /// # Errors
    /// As [`World::parse`].
    pub fn from_env() -> Result<Self, Error> {
        let world = Self::parse(|name| {
            let value = std::env::var_os(name)?;
            Some(value.to_string_lossy().into_owned())
        })?;
        // A path need not be text.
        let error_file = error_file_in_env();
        Ok(Self {
            error_file,
            ..world
        })
    }

    /// The world of an environment: that of a launcher, or without `RANK` a
    /// process on its own.
    ///
    /// # Errors
    /// Names the variable that is absent beside the others, cannot be read,
    /// or contradicts another.
    pub fn parse(variable: impl Fn(&'static str) -> Option<String>) -> Result<Self, Error> {
        let error_file = variable(ERROR_FILE)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from);
        let Some(rank) = variable("RANK") else {
            check_no_world(&variable)?;
            return Ok(Self {
                error_file,
                ..Self::single()
            });
        };
        let required =
            |name| variable(name).ok_or_else(|| wrong(name, "is not set, and `RANK` is"));
        let rank = number("RANK", &rank)?;
        let world_size = number("WORLD_SIZE", &required("WORLD_SIZE")?)?;
        let local_rank = number("LOCAL_RANK", &required("LOCAL_RANK")?)?;
        let local_world_size = number("LOCAL_WORLD_SIZE", &required("LOCAL_WORLD_SIZE")?)?;
        below("RANK", rank, "WORLD_SIZE", world_size)?;
        below(
            "LOCAL_RANK",
            local_rank,
            "LOCAL_WORLD_SIZE",
            local_world_size,
        )?;
        not_above(
            "LOCAL_WORLD_SIZE",
            local_world_size,
            "WORLD_SIZE",
            world_size,
        )?;
        not_above("LOCAL_RANK", local_rank, "RANK", rank)?;
        let addr = required("MASTER_ADDR")?;
        if addr.trim().is_empty() {
            return Err(wrong("MASTER_ADDR", "is empty"));
        }
        let port = required("MASTER_PORT")?;
        let port = number("MASTER_PORT", &port)
            .ok()
            .filter(|port: &u16| *port > 0)
            .ok_or_else(|| wrong("MASTER_PORT", &format!("is no port: `{port}`")))?;
        let restart_count = match variable("TORCHELASTIC_RESTART_COUNT") {
            None => 0,
            Some(count) => number("TORCHELASTIC_RESTART_COUNT", &count)?,
        };
        Ok(Self {
            rank: Rank::new(rank),
            world_size,
            local_rank: LocalRank::new(local_rank),
            local_world_size,
            master: Some(Master { addr, port }),
            restart_count,
            run_id: variable("TORCHELASTIC_RUN_ID"),
            use_agent_store: agent_store(variable("TORCHELASTIC_USE_AGENT_STORE").as_deref())?,
            error_file,
        })
    }

    /// This process among all, from 0.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// Processes of the world, at least 1.
    pub fn world_size(&self) -> u32 {
        self.world_size
    }

    /// This process among those of its node, from 0.
    pub fn local_rank(&self) -> LocalRank {
        self.local_rank
    }

    /// Processes of this node, at least 1.
    pub fn local_world_size(&self) -> u32 {
        self.local_world_size
    }

    /// Where the ranks meet; `None` for a process that no launcher started.
    pub fn master(&self) -> Option<&Master> {
        self.master.as_ref()
    }

    /// How often the launcher has restarted the ranks, as far as it counts: torchrun raises the number on the node of a rank
    /// that failed only, so nodes may differ.
    pub fn restart_count(&self) -> u32 {
        self.restart_count
    }

    /// Whether the ranks may have been started before by the same launcher, which may not count it.
    pub fn may_be_restarted(&self) -> bool {
        self.restart_count > 0 || self.run_id.is_some()
    }

    /// Identity of the launcher of this node's ranks, the same in all its attempts; `None` for a process on its own.
    pub fn launcher(&self) -> Option<String> {
        self.master.as_ref()?;
        let error_file = self.error_file.as_ref().map(|path| path.as_os_str());
        let run_id = self.run_id.as_deref().unwrap_or_default();
        Some(format!("{run_id} {}", launcher_identity(error_file)))
    }

    /// Checks that the master's address has one, which waiting would not give it.
    ///
    /// # Errors
    /// A host name that cannot be resolved.
    pub fn check_master(&self) -> Result<(), Error> {
        let Some(Master { addr, port }) = &self.master else {
            return Ok(());
        };
        let resolved = (addr.as_str(), *port).to_socket_addrs();
        resolved.map(drop).map_err(|error| Error::UnknownHost {
            what: "MASTER_ADDR",
            host: addr.clone(),
            reason: error.to_string(),
        })
    }

    /// Whether the launcher hosts the store at the master's address, as
    /// torchrun does; otherwise rank 0 does.
    pub fn use_agent_store(&self) -> bool {
        self.use_agent_store
    }

    /// Where this rank writes the reason of its failure.
    pub fn error_file(&self) -> Option<&Path> {
        self.error_file.as_deref()
    }

    /// Tells the launcher why this rank fails; nothing without a launcher.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn write_error_file(&self, message: &str, exit_code: u8) -> io::Result<()> {
        match &self.error_file {
            None => Ok(()),
            Some(path) => error_file::write_error_file(path, message, exit_code),
        }
    }
}

/// Tells the launcher of this process, if there is one, why it fails, and the exit code with which it is going to end.
///
/// For the last moments of a program, in which the environment may be what is
/// at fault: nothing is checked, and a file that cannot be written is left.
pub fn report_failure(message: &str, exit_code: u8) {
    if let Some(path) = error_file_in_env() {
        let _ = error_file::write_error_file(&path, message, exit_code);
    }
}

fn error_file_in_env() -> Option<PathBuf> {
    let path = std::env::var_os(ERROR_FILE).filter(|path| !path.is_empty());
    path.map(PathBuf::from)
}

/// Without `RANK` nothing may speak of several ranks.
fn check_no_world(variable: &impl Fn(&'static str) -> Option<String>) -> Result<(), Error> {
    for name in ["LOCAL_RANK", "WORLD_SIZE"] {
        let alone = if name == "WORLD_SIZE" { "1" } else { "0" };
        if let Some(value) = variable(name).filter(|value| value != alone) {
            return Err(wrong(name, &format!("is `{value}`, and `RANK` is not set")));
        }
    }
    Ok(())
}

fn wrong(name: &'static str, reason: &str) -> Error {
    Error::Variable {
        name,
        reason: reason.to_owned(),
    }
}

fn number<T: FromStr>(name: &'static str, value: &str) -> Result<T, Error> {
    value
        .parse()
        .map_err(|_| wrong(name, &format!("is no count: `{value}`")))
}

fn below(name: &'static str, value: u32, of: &'static str, bound: u32) -> Result<(), Error> {
    if value < bound {
        Ok(())
    } else {
        let reason = format!("is {value}, and must be below `{of}`: {bound}");
        Err(wrong(name, &reason))
    }
}

fn not_above(name: &'static str, value: u32, of: &'static str, bound: u32) -> Result<(), Error> {
    if value <= bound {
        Ok(())
    } else {
        let reason = format!("is {value}, and must not be above `{of}`: {bound}");
        Err(wrong(name, &reason))
    }
}

/// torchrun writes the values of Python.
fn agent_store(value: Option<&str>) -> Result<bool, Error> {
    match value {
        None | Some("False") => Ok(false),
        Some("True") => Ok(true),
        Some(other) => {
            let reason = format!("must be `True` or `False`: `{other}`");
            Err(wrong("TORCHELASTIC_USE_AGENT_STORE", &reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Variables = Vec<(&'static str, &'static str)>;

    /// What torchrun sets for the last of three ranks on two nodes.
    fn whole() -> Variables {
        vec![
            ("RANK", "2"),
            ("WORLD_SIZE", "3"),
            ("LOCAL_RANK", "0"),
            ("LOCAL_WORLD_SIZE", "1"),
            ("MASTER_ADDR", "node0"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_RESTART_COUNT", "4"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_ERROR_FILE", "/tmp/error.json"),
        ]
    }

    fn parse(variables: &Variables) -> Result<World, Error> {
        World::parse(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn with(name: &'static str, value: &'static str) -> Variables {
        let mut variables = whole();
        variables.retain(|(key, _)| *key != name);
        variables.push((name, value));
        variables
    }

    fn refused(variables: &Variables) -> String {
        parse(variables).expect_err("contradicts").to_string()
    }

    #[test]
    fn a_whole_environment() {
        let world = parse(&whole()).expect("whole");
        assert_eq!((world.rank().get(), world.world_size()), (2, 3));
        assert_eq!((world.local_rank().get(), world.local_world_size()), (0, 1));
        let master = world.master().expect("a launcher");
        assert_eq!((master.addr.as_str(), master.port), ("node0", 29500));
        assert_eq!(world.restart_count(), 4);
        assert!(world.use_agent_store());
        assert_eq!(world.error_file(), Some(Path::new("/tmp/error.json")));
    }

    #[test]
    fn without_a_rank_a_process_is_on_its_own() {
        assert_eq!(parse(&Vec::new()).ok(), Some(World::single()));
        let leftovers = vec![("MASTER_ADDR", "node0"), ("WORLD_SIZE", "1")];
        assert_eq!(parse(&leftovers).ok(), Some(World::single()));
        World::single()
            .write_error_file("why", 1)
            .expect("nothing to do");
    }

    #[test]
    fn a_part_of_an_environment_is_refused() {
        for name in [
            "WORLD_SIZE",
            "LOCAL_RANK",
            "LOCAL_WORLD_SIZE",
            "MASTER_ADDR",
            "MASTER_PORT",
        ] {
            let mut variables = whole();
            variables.retain(|(key, _)| *key != name);
            let message = refused(&variables);
            assert!(
                message.contains(&format!("`{name}` is not set")),
                "{message}"
            );
        }
        let mut variables = whole();
        variables.retain(|(key, _)| *key != "RANK");
        assert!(refused(&variables).starts_with("environment variable `WORLD_SIZE` is `3`"));
    }

    #[test]
    fn contradictions_name_the_variable() {
        for (name, value) in [
            ("RANK", "3"),
            ("RANK", "-1"),
            ("WORLD_SIZE", "0"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("MASTER_ADDR", " "),
            ("MASTER_PORT", "0"),
            ("MASTER_PORT", "65536"),
            ("TORCHELASTIC_RESTART_COUNT", "x"),
            ("TORCHELASTIC_USE_AGENT_STORE", "1"),
        ] {
            let message = refused(&with(name, value));
            // A bound at fault is named as well.
            assert!(message.contains(&format!("`{name}`")), "{message}");
        }
        let mut variables = with("RANK", "0");
        variables.retain(|(key, _)| !key.starts_with("LOCAL"));
        variables.extend([("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")]);
        assert!(refused(&variables).contains("`LOCAL_RANK` is 1, and must not be above `RANK`"));
    }

    #[test]
    fn a_master_without_an_address_is_named() {
        for known in ["127.0.0.1", "localhost", "::1"] {
            let world = parse(&with("MASTER_ADDR", known)).expect("whole");
            world.check_master().expect("an address");
        }
        let world = parse(&with("MASTER_ADDR", "no-such-host.invalid")).expect("whole");
        let error = world.check_master().expect_err("no address");
        let said = "`MASTER_ADDR`: host `no-such-host.invalid` cannot be resolved: ";
        assert!(error.to_string().starts_with(said), "{error}");
        assert!(error.is_input() && error.hint().is_some());
    }

    #[test]
    fn a_launcher_with_a_run_id_may_restart_without_counting() {
        let world = parse(&with("TORCHELASTIC_RESTART_COUNT", "0")).expect("whole");
        assert!(!world.may_be_restarted());
        let mut variables = with("TORCHELASTIC_RESTART_COUNT", "0");
        variables.push(("TORCHELASTIC_RUN_ID", "job"));
        let world = parse(&variables).expect("whole");
        assert!(world.may_be_restarted());
        assert!(world.launcher().expect("a launcher").starts_with("job "));
        assert_eq!(World::single().launcher(), None);
    }

    #[test]
    fn a_launcher_without_a_store_and_a_file() {
        let world = parse(&with("TORCHELASTIC_USE_AGENT_STORE", "False")).expect("whole");
        assert!(!world.use_agent_store());
        let world = parse(&with("TORCHELASTIC_ERROR_FILE", "")).expect("whole");
        assert_eq!(world.error_file(), None);
    }
}
