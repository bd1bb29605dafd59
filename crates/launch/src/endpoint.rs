//! Address at which node 0 listens.

use std::fmt;

/// Address at which node 0 listens for the other launchers: `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// A host without brackets, and a port; `None` where either cannot be.
    pub fn new(host: &str, port: u16) -> Option<Self> {
        let is_host = !host.is_empty()
            && host.len() <= 255
            && host
                .chars()
                .all(|char| char.is_ascii_graphic() && !"[]/,".contains(char));
        (is_host && port > 0).then(|| Self {
            host: host.to_owned(),
            port,
        })
    }

    /// The name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
