//! A small server on loopback that sends what a test tells it to, byte for byte and when.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the server sends after the head of an answer.
#[derive(Clone)]
pub(crate) enum Step {
    Send(Bytes),
    /// Nothing more, and the connection stays open.
    Stall,
    /// The connection breaks, without an end of the body.
    Abort,
}

/// One answer.
#[derive(Clone)]
pub(crate) struct Answer {
    status: u16,
    content_type: &'static str,
    headers: Vec<(&'static str, String)>,
    steps: Vec<Step>,
}

impl Answer {
    pub(crate) fn json(status: u16, body: impl ToString) -> Self {
        let steps = vec![Step::Send(body.to_string().into())];
        Self {
            status,
            content_type: "application/json",
            headers: Vec::new(),
            steps,
        }
    }

    /// A stream of events, written in pieces of `size` bytes.
    pub(crate) fn events(events: &[&str], size: usize) -> Self {
        let text: String = events
            .iter()
            .map(|event| format!("data: {event}\r\n\r\n"))
            .collect();
        let piece = |piece: &[u8]| Step::Send(Bytes::copy_from_slice(piece));
        let steps = text.as_bytes().chunks(size).map(piece).collect();
        Self {
            status: 200,
            content_type: "text/event-stream",
            headers: Vec::new(),
            steps,
        }
    }

    pub(crate) fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    fn into_response(self) -> Response<StreamBody<BoxStream<'static, io::Result<Frame<Bytes>>>>> {
        let mut response = Response::builder()
            .status(self.status)
            .header("content-type", self.content_type);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        let steps = stream::iter(self.steps).then(|step| async {
            match step {
                // Lets what was sent before leave in a write of its own.
                Step::Send(bytes) => {
                    tokio::task::yield_now().await;
                    Ok(Frame::data(bytes))
                }
                Step::Stall => futures::future::pending().await,
                Step::Abort => {
                    tokio::task::yield_now().await;
                    Err(io::Error::other("the test says so"))
                }
            }
        });
        response
            .body(StreamBody::new(steps.boxed()))
            .expect("a valid answer")
    }
}

/// What the server was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: serde_json::Value,
}

/// The running server; dropping it closes everything.
pub(crate) struct Server {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    open: watch::Receiver<usize>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Starts a server that answers each request with what `answer` gives for it.
    pub(crate) async fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let (count, open) = watch::channel(0);
        let (answer, record) = (Arc::new(answer), Arc::clone(&asked));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.expect("accepts");
                let (answer, record, count) = (answer.clone(), record.clone(), count.clone());
                count.send_modify(|open| *open += 1);
                let service = service_fn(move |request| {
                    let (answer, record) = (answer.clone(), record.clone());
                    async move {
                        let asked = read(request).await;
                        let answer = answer(&asked);
                        record.lock().expect("no test panics here").push(asked);
                        Ok::<_, Infallible>(answer.into_response())
                    }
                });
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(socket), service);
                // It ends in an error where a test breaks it, which is what the test looks at.
                connections.spawn(connection.map(move |_| count.send_modify(|open| *open -= 1)));
            }
        });
        Self {
            url,
            asked,
            open,
            _tasks: tasks,
        }
    }

    /// Starts a server that gives the same answer to everything.
    pub(crate) async fn always(answer: Answer) -> Self {
        Self::start(move |_| answer.clone()).await
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no test panics here").clone()
    }

    /// Waits until nobody is connected.
    pub(crate) async fn idle(&self) {
        self.open
            .clone()
            .wait_for(|open| *open == 0)
            .await
            .expect("the server runs");
    }

    pub(crate) fn connections(&self) -> usize {
        *self.open.borrow()
    }
}

async fn read(request: Request<Incoming>) -> Asked {
    let (head, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .expect("the request is whole")
        .to_bytes();
    Asked {
        path: head.uri.path().to_owned(),
        headers: head.headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    }
}
