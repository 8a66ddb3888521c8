//! SOCKS5 (RFC 1928, RFC 1929).

use std::net::{IpAddr, SocketAddr};

use sandbox_net::UpstreamProxy;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    echo,
    support::{Company, behind},
};
use crate::support::{Origin, allowing, body, fetch};

const TARGET: &str = "www.example.com:7000";

/// A server that leads to one address and wants a login, if one is named.
pub(super) async fn server(to: SocketAddr, login: Option<(&'static str, &'static str)>) -> Company {
    Company::start(move |stream| async move {
        match serve(stream, to, login).await {
            Ok(asked) => asked,
            Err(error) => format!("broken: {error}"),
        }
    })
    .await
}

async fn serve(
    mut stream: TcpStream,
    to: SocketAddr,
    login: Option<(&str, &str)>,
) -> std::io::Result<String> {
    assert_eq!(stream.read_u8().await?, 5);
    let mut methods = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut methods).await?;
    match login {
        None => stream.write_all(&[5, 0]).await?,
        Some(_) if !methods.contains(&2) => {
            stream.write_all(&[5, 0xff]).await?;
            return Ok("no login".to_owned());
        }
        Some((user, password)) => {
            stream.write_all(&[5, 2]).await?;
            assert_eq!(stream.read_u8().await?, 1);
            let given = (text(&mut stream).await?, text(&mut stream).await?);
            let is_right = given == (user.to_owned(), password.to_owned());
            stream.write_all(&[1, u8::from(!is_right)]).await?;
            if !is_right {
                return Ok("wrong login".to_owned());
            }
        }
    }
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    assert_eq!(head[..3], [5, 1, 0]);
    let host = match head[3] {
        1 => IpAddr::from(<[u8; 4]>::try_from(bytes(&mut stream, 4).await?).unwrap()).to_string(),
        3 => text(&mut stream).await?,
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes(&mut stream, 16).await?).unwrap()).to_string(),
    };
    let asked = format!("{host}:{}", stream.read_u16().await?);
    let mut up = TcpStream::connect(to).await?;
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    tokio::io::copy_bidirectional(&mut stream, &mut up).await?;
    Ok(asked)
}

async fn bytes(stream: &mut TcpStream, count: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn text(stream: &mut TcpStream) -> std::io::Result<String> {
    let count = usize::from(stream.read_u8().await?);
    Ok(String::from_utf8(bytes(stream, count).await?).unwrap())
}

/// What the server was asked for, once the connection has ended there, too.
pub(super) async fn asked(server: &Company) -> Vec<String> {
    crate::support::within(async {
        while server.asked().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    server.asked()
}

#[tokio::test]
async fn e34_socks_is_asked_for_the_address_and_with_names_for_the_name() {
    let origin = Origin::echo().await;
    for (names, expected) in [(false, "8.8.8.8:7000"), (true, TARGET)] {
        let server = server(origin.address, None).await;
        let upstream = UpstreamProxy::at(&server.url("socks5h", "")).unwrap();
        let upstream = if names { upstream.names() } else { upstream };
        let proxy = behind(upstream, allowing(&[TARGET]));
        assert_eq!(echo(&proxy, TARGET).await, "hello");
        assert_eq!(asked(&server).await, [expected]);
    }
    let origin = Origin::mirror().await;
    let server = server(origin.address, None).await;
    let upstream = UpstreamProxy::at(&server.url("socks5", ""))
        .unwrap()
        .names();
    let proxy = behind(upstream, allowing(&["www.example.com"]));
    let answer = fetch(&proxy, "http://www.example.com/a").await;
    assert!(
        answer.contains("GET /a HTTP/1.1\r\n"),
        "no absolute form: {answer}"
    );
}

#[tokio::test]
async fn a_login_is_given_to_those_who_ask_for_one() {
    let origin = Origin::echo().await;
    let server = server(origin.address, Some(("me", "p@ss"))).await;
    for (login, works) in [("me:p%40ss@", true), ("me:wrong@", false), ("", false)] {
        let upstream = UpstreamProxy::at(&server.url("socks5", login)).unwrap();
        let answer = echo(&behind(upstream, allowing(&[TARGET])), TARGET).await;
        match works {
            true => assert_eq!(answer, "hello"),
            false => assert_eq!(body(&answer)["reason"], "upstream-proxy-login", "{answer}"),
        }
    }
}

#[tokio::test]
async fn e34_hostile_answers_are_502() {
    for (answer, reason) in [
        (&b""[..], "upstream-proxy"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "upstream-proxy"),
        (&[4, 0], "upstream-proxy"),
        (&[5, 9], "upstream-proxy"),
        (&[5, 0xff], "upstream-proxy-login"),
        (&[5, 2, 1, 0], "upstream-proxy-login"),
        (&[5, 0, 5, 0, 0, 9], "upstream-proxy"),
        (&[5, 0, 5, 0, 1, 1], "upstream-proxy"),
        (&[5, 0, 5, 0, 0, 3, 255, 0xff, 0xfe], "upstream-proxy"),
        (&[5, 0, 5, 0, 0, 3, 2, 0xff, 0xfe, 0, 80], "upstream-proxy"),
        (&[5, 0, 5, 2, 0, 1], "upstream-proxy-refused"),
        (&[5, 0, 5, 77, 0, 1], "upstream-proxy"),
    ] {
        let company = Company::saying(answer.to_vec()).await;
        let upstream = UpstreamProxy::at(&company.url("socks5", "")).unwrap();
        let told = echo(&behind(upstream, allowing(&[TARGET])), TARGET).await;
        assert_eq!(body(&told)["reason"], reason, "{answer:?}: {told}");
    }
}
