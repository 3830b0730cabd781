//! The floor of a transition: the same bytes in the same rounds between two processes, with the same synced writes
//! and nothing else.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What one exchange consists of.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) connections: usize,
    /// For each round, the bytes of an order and of its answer.
    pub(crate) rounds: Vec<(usize, usize)>,
    pub(crate) syncs: usize,
    pub(crate) sync_bytes: usize,
}

/// The server's side, in its own process: waits for a line on stdin per exchange, does it, says so.
pub(crate) fn serve(args: &str) {
    let numbers: Vec<usize> = args.split(',').map(|number| number.parse().expect("a number")).collect();
    let [connections, syncs, sync_bytes, rounds @ ..] = numbers.as_slice() else { panic!("a shape") };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("an address"));
    let mut streams: Vec<TcpStream> = (0..*connections)
        .map(|_| {
            let (stream, _) = listener.accept().expect("a connection");
            stream.set_nodelay(true).expect("a TCP socket");
            stream
        })
        .collect();
    let path = std::env::current_dir().expect("a directory").join("floor");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path).expect("a file");
    // Preallocated, as the journal is, so that a sync writes data and no sizes.
    file.write_all_at(&vec![0; 64 << 20], 0).expect("room");
    file.sync_all().expect("a disk");
    let (mut at, block) = (0, vec![1; *sync_bytes]);
    let mut sync = || {
        file.write_all_at(&block, at).expect("room");
        at = (at + block.len() as u64) % (60 << 20);
        file.sync_data().expect("a disk");
    };
    for line in std::io::stdin().lock().lines() {
        drop(line.expect("a line"));
        // A write before each round, and the rest after the last.
        for round in rounds.chunks(2) {
            sync();
            let order = vec![1; round[0]];
            streams.iter_mut().for_each(|stream| stream.write_all(&order).expect("a client"));
            let mut answer = vec![0; round[1]];
            streams.iter_mut().for_each(|stream| stream.read_exact(&mut answer).expect("a client"));
        }
        (rounds.len() / 2..*syncs).for_each(|_| sync());
        println!("done");
    }
}

/// Runs the exchange so many times beside a server process working in `dir`.
pub(crate) struct Floor {
    server: Child,
    done: BufReader<std::process::ChildStdout>,
}

impl Floor {
    pub(crate) fn start(shape: &Shape, dir: &Path) -> Self {
        let rounds: Vec<_> = shape.rounds.iter().map(|(order, answer)| format!("{order},{answer}")).collect();
        let args = format!("{},{},{},{}", shape.connections, shape.syncs, shape.sync_bytes, rounds.join(","));
        let mut server = Command::new(std::env::current_exe().expect("this program"))
            .args(["--floor-server", &args])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts");
        let mut done = BufReader::new(server.stdout.take().expect("piped"));
        let mut address = String::new();
        done.read_line(&mut address).expect("an address");
        // As many clients as agents, on as few threads as the agents share.
        let mut streams: Vec<TcpStream> =
            (0..shape.connections).map(|_| TcpStream::connect(address.trim()).expect("the server")).collect();
        let rounds = shape.rounds.clone();
        std::thread::spawn(move || {
            loop {
                for (order, answer) in &rounds {
                    let (mut order, answer) = (vec![0; *order], vec![1; *answer]);
                    for stream in &mut streams {
                        stream.set_nodelay(true).expect("a TCP socket");
                        if stream.read_exact(&mut order).is_err() {
                            return;
                        }
                        stream.write_all(&answer).expect("the server");
                    }
                }
            }
        });
        Self { server, done }
    }

    pub(crate) fn exchange(&mut self) -> Duration {
        let start = Instant::now();
        self.server.stdin.as_mut().expect("piped").write_all(b"\n").expect("the server");
        let mut line = String::new();
        self.done.read_line(&mut line).expect("the server");
        start.elapsed()
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        drop(self.server.stdin.take());
        self.server.wait().expect("the server ends with its input");
    }
}
