//! The key-value store by which ranks find each other.

use std::ffi::{CString, c_char};
use std::ptr::NonNull;
use std::time::Duration;

use super::bounded::{GRACE, bounded};
use super::failure::FailureKind;
use super::ffi::{self, CStore, RawFailure};
use crate::error::{Error, Result};

/// Settings of a [`Store`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreOptions {
    /// How long connecting, and every call that waits without a time of its own, may take.
    pub timeout: Duration,
    /// How many processes will connect, the server's own included; needed for `wait_for_workers` only.
    pub num_workers: Option<usize>,
    /// Whether making the store waits until all of them have connected.
    pub wait_for_workers: bool,
}

impl Default for StoreOptions {
    /// Five minutes, waiting for nobody.
    fn default() -> Self {
        StoreOptions {
            timeout: Duration::from_mins(5),
            num_workers: None,
            wait_for_workers: false,
        }
    }
}

/// A connection to a key-value store in one of the processes: c10d's `TCPStore`, the same that `torchrun` serves.
///
/// It listens on all network interfaces of the serving machine and knows no passwords: it belongs into a network whose
/// machines trust each other. Calls of several threads on one connection take turns; [`Store::try_clone`] makes another.
pub struct Store {
    handle: NonNull<CStore>,
    host: String,
    port: u16,
}

// SAFETY: c10d's stores lock around every call.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Serves a store at `port` from a thread of this process, and connects to it as `host`; port 0 is any free one, to
    /// be asked for with [`Store::port`].
    ///
    /// # Errors
    /// A port in use, or workers that do not come in time.
    pub fn serve(host: &str, port: u16, options: &StoreOptions) -> Result<Self> {
        Self::open("serve", host, port, true, options)
    }

    /// Connects to a store that another process serves, which may start later than this one.
    ///
    /// # Errors
    /// No store in time, or one whose process is stopped.
    pub fn connect(host: &str, port: u16, options: &StoreOptions) -> Result<Self> {
        const OP: &str = "connect";
        let (own_host, own_options) = (host.to_owned(), *options);
        let connected = bounded(options.timeout.saturating_add(GRACE), move || {
            Self::open(OP, &own_host, port, false, &own_options)
        })?;
        connected.unwrap_or_else(|| {
            Err(Error::StoreTimeout {
                op: OP,
                address: format!("{host}:{port}"),
                message: "it takes connections and does not answer".to_owned(),
            })
        })
    }

    fn open(
        op: &'static str,
        host: &str,
        port: u16,
        is_server: bool,
        options: &StoreOptions,
    ) -> Result<Self> {
        let address = || format!("{host}:{port}");
        let c_host = c_string(op, &address(), host)?;
        let (mut output, mut bound_port, mut failure) = (std::ptr::null_mut(), 0, 0);
        // SAFETY: the host is NUL-terminated and all places outlive the call.
        let opened = unsafe {
            let message = ffi::asyncthink_store_tcp(
                c_host.as_ptr(),
                port,
                is_server,
                options.num_workers.unwrap_or(0),
                options.wait_for_workers,
                ffi::milliseconds(options.timeout),
                &raw mut output,
                &raw mut bound_port,
                &raw mut failure,
            );
            ffi::check(message, failure)
        };
        let handle = opened
            .and_then(|()| ffi::handed_over(output))
            .map_err(|raw| store_error(op, address(), raw))?;
        Ok(Store {
            handle,
            host: host.to_owned(),
            port: bound_port,
        })
    }

    /// The host as it was named.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port that the store is served at.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The same connection with `prefix/` before every key, so that the keys of several users, or of several attempts,
    /// do not meet.
    ///
    /// # Errors
    /// A prefix that holds a NUL character.
    pub fn prefixed(&self, prefix: &str) -> Result<Self> {
        let prefix = self.key("prefixed", prefix)?;
        let mut output = std::ptr::null_mut();
        self.call("prefixed", |failure| {
            // SAFETY: the store lives, the prefix is NUL-terminated and the places outlive the call.
            unsafe {
                ffi::asyncthink_store_prefix(
                    self.handle.as_ptr(),
                    prefix.as_ptr(),
                    &raw mut output,
                    failure,
                )
            }
        })?;
        self.same_address("prefixed", output)
    }

    /// A connection of its own to the same store, with the same prefix.
    ///
    /// # Errors
    /// A store that is gone.
    pub fn try_clone(&self) -> Result<Self> {
        let mut output = std::ptr::null_mut();
        self.call("try_clone", |failure| {
            // SAFETY: the store lives and the places outlive the call.
            unsafe { ffi::asyncthink_store_clone(self.handle.as_ptr(), &raw mut output, failure) }
        })?;
        self.same_address("try_clone", output)
    }

    fn same_address(&self, op: &'static str, output: *mut CStore) -> Result<Self> {
        Ok(Store {
            handle: ffi::handed_over(output).map_err(|raw| self.error(op, raw))?,
            host: self.host.clone(),
            port: self.port,
        })
    }

    /// Sets `key` to `value`.
    ///
    /// # Errors
    /// A store that is gone.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = self.key("set", key)?;
        self.call("set", |failure| {
            // SAFETY: the store lives, the key is NUL-terminated and the value is borrowed for the call.
            unsafe {
                ffi::asyncthink_store_set(
                    self.handle.as_ptr(),
                    key.as_ptr(),
                    value.as_ptr(),
                    value.len(),
                    failure,
                )
            }
        })
    }

    /// The value of `key`, waiting up to `timeout` until somebody sets it.
    ///
    /// # Errors
    /// No value in time, or a store that is gone.
    pub fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>> {
        self.wait(&[key], timeout)?;
        let key = self.key("get", key)?;
        let (mut data, mut size) = (std::ptr::null_mut(), 0);
        self.call("get", |failure| {
            // SAFETY: the store lives, the key is NUL-terminated and the places outlive the call.
            unsafe {
                ffi::asyncthink_store_get(
                    self.handle.as_ptr(),
                    key.as_ptr(),
                    &raw mut data,
                    &raw mut size,
                    failure,
                )
            }
        })?;
        // SAFETY: the call succeeded, so the bytes are handed over.
        Ok(unsafe { ffi::take_bytes(data, size) })
    }

    /// Adds `amount` to the number at `key`, 0 at first, and returns the sum; one step for all connections.
    ///
    /// # Errors
    /// A value that is no number, or a store that is gone.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64> {
        let key = self.key("add", key)?;
        let mut sum = 0;
        self.call("add", |failure| {
            // SAFETY: the store lives, the key is NUL-terminated and the places outlive the call.
            unsafe {
                ffi::asyncthink_store_add(
                    self.handle.as_ptr(),
                    key.as_ptr(),
                    amount,
                    &raw mut sum,
                    failure,
                )
            }
        })?;
        Ok(sum)
    }

    /// Waits up to `timeout` until all `keys` are set.
    ///
    /// # Errors
    /// A key that is not set in time, or a store that is gone.
    pub fn wait(&self, keys: &[&str], timeout: Duration) -> Result<()> {
        let keys = self.keys("wait", keys)?;
        let pointers = pointers(&keys);
        self.call("wait", |failure| {
            // SAFETY: the store lives and the keys are NUL-terminated.
            unsafe {
                ffi::asyncthink_store_wait(
                    self.handle.as_ptr(),
                    pointers.as_ptr(),
                    pointers.len(),
                    ffi::milliseconds(timeout),
                    failure,
                )
            }
        })
    }

    /// Whether all `keys` are set now.
    ///
    /// # Errors
    /// A store that is gone.
    pub fn has(&self, keys: &[&str]) -> Result<bool> {
        let keys = self.keys("has", keys)?;
        let pointers = pointers(&keys);
        let mut has = false;
        self.call("has", |failure| {
            // SAFETY: the store lives, the keys are NUL-terminated and the places outlive the call.
            unsafe {
                ffi::asyncthink_store_has(
                    self.handle.as_ptr(),
                    pointers.as_ptr(),
                    pointers.len(),
                    &raw mut has,
                    failure,
                )
            }
        })?;
        Ok(has)
    }

    /// Sets `key` to `desired` if its value is `expected`, or if it has none and `expected` is empty; returns its value
    /// after that. One step for all connections.
    ///
    /// # Errors
    /// A store that is gone.
    pub fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>> {
        let key = self.key("compare_set", key)?;
        let (mut data, mut size) = (std::ptr::null_mut(), 0);
        self.call("compare_set", |failure| {
            // SAFETY: the store lives, the key is NUL-terminated, the values are borrowed for the call and the places
            // outlive it.
            unsafe {
                ffi::asyncthink_store_compare_set(
                    self.handle.as_ptr(),
                    key.as_ptr(),
                    expected.as_ptr(),
                    expected.len(),
                    desired.as_ptr(),
                    desired.len(),
                    &raw mut data,
                    &raw mut size,
                    failure,
                )
            }
        })?;
        // SAFETY: the call succeeded, so the bytes are handed over.
        Ok(unsafe { ffi::take_bytes(data, size) })
    }

    /// Removes `key`; returns whether it was set.
    ///
    /// # Errors
    /// A store that is gone.
    pub fn delete(&self, key: &str) -> Result<bool> {
        let key = self.key("delete", key)?;
        let mut existed = false;
        self.call("delete", |failure| {
            // SAFETY: the store lives, the key is NUL-terminated and the places outlive the call.
            unsafe {
                ffi::asyncthink_store_delete(
                    self.handle.as_ptr(),
                    key.as_ptr(),
                    &raw mut existed,
                    failure,
                )
            }
        })?;
        Ok(existed)
    }

    /// The C++ side; valid as long as `self` lives.
    pub(crate) fn as_ptr(&self) -> *const CStore {
        self.handle.as_ptr()
    }

    fn call(
        &self,
        op: &'static str,
        function: impl FnOnce(*mut i32) -> ffi::Message,
    ) -> Result<()> {
        let mut failure = 0;
        let message = function(&raw mut failure);
        // SAFETY: every caller's function is one of `ffi`.
        unsafe { ffi::check(message, failure) }.map_err(|raw| self.error(op, raw))
    }

    fn error(&self, op: &'static str, raw: RawFailure) -> Error {
        store_error(op, self.address(), raw)
    }

    fn key(&self, op: &'static str, key: &str) -> Result<CString> {
        c_string(op, &self.address(), key)
    }

    fn keys(&self, op: &'static str, keys: &[&str]) -> Result<Vec<CString>> {
        keys.iter().map(|key| self.key(op, key)).collect()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the store was handed over to `self` and is freed once.
        unsafe { ffi::asyncthink_store_free(self.handle.as_ptr()) }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

fn pointers(keys: &[CString]) -> Vec<*const c_char> {
    keys.iter().map(|key| key.as_ptr()).collect()
}

fn c_string(op: &'static str, address: &str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::Store {
        op,
        address: address.to_owned(),
        message: format!("`{}` holds a NUL character", text.escape_default()),
    })
}

fn store_error(op: &'static str, address: String, raw: RawFailure) -> Error {
    let message = raw.message;
    match raw.kind {
        FailureKind::Timeout => Error::StoreTimeout {
            op,
            address,
            message,
        },
        FailureKind::PeerLost | FailureKind::Other => Error::Store {
            op,
            address,
            message,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Store {
        Store::serve("127.0.0.1", 0, &StoreOptions::default()).unwrap()
    }

    const SOON: Duration = Duration::from_millis(300);

    #[test]
    fn values_are_shared_between_connections() {
        let server = store();
        let client = Store::connect("127.0.0.1", server.port(), &StoreOptions::default()).unwrap();
        server.set("key", b"a\0b").unwrap();
        assert_eq!(client.get("key", SOON).unwrap(), b"a\0b");
        assert_eq!(client.add("count", 2).unwrap(), 2);
        assert_eq!(server.add("count", 3).unwrap(), 5);
        assert!(client.has(&["key", "count"]).unwrap());
        assert!(!client.has(&["key", "other"]).unwrap());

        assert_eq!(client.compare_set("owner", b"", b"1").unwrap(), b"1");
        assert_eq!(server.compare_set("owner", b"", b"2").unwrap(), b"1");
        assert_eq!(server.compare_set("owner", b"1", b"2").unwrap(), b"2");

        let inner = client.prefixed("attempt_1").unwrap();
        assert!(!inner.has(&["key"]).unwrap());
        inner.set("key", b"inner").unwrap();
        assert_eq!(server.get("attempt_1/key", SOON).unwrap(), b"inner");
        let clone = inner.try_clone().unwrap();
        assert_eq!(clone.get("key", SOON).unwrap(), b"inner");
        assert!(clone.delete("key").unwrap());
        assert!(!inner.has(&["key"]).unwrap());
    }

    #[test]
    fn waiting_ends_in_time_and_names_the_key() {
        let server = store();
        let start = std::time::Instant::now();
        let error = server.get("nobody sets this", SOON).unwrap_err();
        assert!(start.elapsed() < 10 * SOON);
        assert!(matches!(error, Error::StoreTimeout { .. }), "{error}");
        assert!(error.to_string().contains("nobody sets this"), "{error}");
        server.set("later", b"works").unwrap();
        assert_eq!(server.get("later", SOON).unwrap(), b"works");
    }

    #[test]
    fn a_store_that_is_not_there_is_an_error() {
        // Nobody listens there, and no test next to this one gets it.
        let port = 1;
        let options = StoreOptions {
            timeout: SOON,
            ..StoreOptions::default()
        };
        let error = Store::connect("127.0.0.1", port, &options).unwrap_err();
        let expected = format!("`connect` on the store at `127.0.0.1:{port}`");
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert!(matches!(error, Error::StoreTimeout { .. }), "{error}");

        let server = store();
        let error = server.set("a\0b", b"").unwrap_err();
        assert!(error.to_string().contains("`a\\u{0}b`"), "{error}");
    }
}
