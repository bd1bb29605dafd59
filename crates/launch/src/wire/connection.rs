//! A TCP connection that carries one line of JSON per message.

use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest line; the longest that is written is a report of failures.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Heartbeats within the time after which a silent peer is lost.
pub(crate) const BEATS: u32 = 6;

/// The writing side of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Mutex<TcpStream>,
}

impl Connection {
    /// Takes a connection; a peer that says nothing for `silence`, or does
    /// not read, counts as lost.
    pub(crate) fn new(stream: TcpStream, silence: Duration) -> io::Result<(Self, LineReader)> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence))?;
        stream.set_write_timeout(Some(silence))?;
        let reader = LineReader(BufReader::new(stream.try_clone()?));
        let stream = Mutex::new(stream);
        Ok((Self { stream }, reader))
    }

    /// Sets how long the peer may say nothing.
    pub(crate) fn expect_within(&self, silence: Duration) -> io::Result<()> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.set_read_timeout(Some(silence))
    }

    /// Writes one line.
    pub(crate) fn send<T: Serialize>(&self, line: &T) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(&text)
    }

    /// Ends the connection, after what was written.
    pub(crate) fn finish(&self) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection at once.
    pub(crate) fn cut(&self) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Sends a line at every interval until sending fails or `stop` is dropped.
pub(crate) fn send_repeatedly<T: Serialize>(
    connection: &Connection,
    line: &T,
    interval: Duration,
    stop: &mpsc::Receiver<()>,
) {
    while stop.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        if connection.send(line).is_err() {
            return;
        }
    }
}

/// The reading side of a connection.
#[derive(Debug)]
pub(crate) struct LineReader(BufReader<TcpStream>);

impl LineReader {
    /// The next line as it is.
    pub(crate) fn line(&mut self) -> Result<Vec<u8>, ReceiveError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.0).take(MAX_LINE_BYTES);
        match bounded.read_until(b'\n', &mut line) {
            Ok(_) if line.last() == Some(&b'\n') => Ok(line),
            Ok(num) if num as u64 == MAX_LINE_BYTES => Err(ReceiveError::Malformed(
                "it sent a line too long".to_owned(),
            )),
            Ok(_) => Err(ReceiveError::Closed("it closed the connection".to_owned())),
            Err(error) if is_timeout(&error) => Err(ReceiveError::Timeout),
            Err(error) => Err(ReceiveError::Closed(format!(
                "the connection to it failed: {error}"
            ))),
        }
    }

    /// The next line as a value.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<T, ReceiveError> {
        let line = self.line()?;
        serde_json::from_slice(&line)
            .map_err(|error| ReceiveError::Malformed(format!("its line cannot be read: {error}")))
    }
}

/// Reasons why there is no next line.
#[derive(Debug)]
pub(crate) enum ReceiveError {
    /// The peer has said nothing for too long.
    Timeout,
    /// The connection is gone.
    Closed(String),
    /// The line is no message.
    Malformed(String),
}

impl ReceiveError {
    pub(crate) fn reason(self) -> String {
        match self {
            Self::Timeout => "nothing was heard of it for too long".to_owned(),
            Self::Closed(reason) | Self::Malformed(reason) => reason,
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::wire::Order;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let client = TcpStream::connect(address).expect("a connection");
        let (server, _) = listener.accept().expect("a connection");
        (client, server)
    }

    #[test]
    fn lines_arrive_as_they_were_sent() {
        let (client, server) = pair();
        let silence = Duration::from_mins(1);
        let (ours, _) = Connection::new(client, silence).expect("a connection");
        let (_theirs, mut reader) = Connection::new(server, silence).expect("a connection");
        let order = Order::Stop {
            attempt: 3,
            signal: None,
        };
        ours.send(&Order::Heartbeat).expect("sent");
        ours.send(&order).expect("sent");
        ours.finish();
        assert_eq!(reader.next::<Order>().ok(), Some(Order::Heartbeat));
        assert_eq!(reader.next::<Order>().ok(), Some(order));
        let end = reader.next::<Order>().expect_err("the end").reason();
        assert_eq!(end, "it closed the connection");
    }

    #[test]
    fn endless_and_malformed_lines_are_refused() {
        let (client, server) = pair();
        let silence = Duration::from_mins(1);
        let (_ours, mut reader) = Connection::new(server, silence).expect("a connection");
        let writer = std::thread::spawn(move || {
            let mut client = client;
            client.write_all(b"{}\n")?;
            client.write_all(&vec![b'x'; usize::try_from(MAX_LINE_BYTES).expect("fits")])
        });
        let malformed = reader.next::<Order>().expect_err("no order");
        assert!(matches!(malformed, ReceiveError::Malformed(_)));
        let endless = reader.next::<Order>().expect_err("no order").reason();
        assert_eq!(endless, "it sent a line too long");
        writer.join().expect("a thread").expect("written");
    }
}
