//! A token in a file → the header of requests. Kubelet rotates service accounts' tokens in place, so the file is read
//! again every minute; one that cannot be read then, or is empty, leaves the last one in use.
//!
//! kube would read the file too, but sends it as it is: with the newline that an editor or a shell leaves at its end,
//! no request could be made.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http::HeaderValue;

use super::kubeconfig::{KubeconfigProblem, is_token};
use crate::manifest::files::read_text;

/// The largest token that is read.
const MAX_TOKEN: u64 = 1 << 20;
/// How long one is used without a look at the file. Tokens of service accounts are rotated long before they expire.
const FRESH: Duration = Duration::from_secs(60);

/// A token and where it comes from.
#[derive(Debug)]
pub(crate) struct Token {
    file: PathBuf,
    header: HeaderValue,
    read: Instant,
}

impl Token {
    /// Reads it for the first time.
    pub(crate) fn read(file: &Path) -> Result<Self, KubeconfigProblem> {
        Ok(Self { file: file.to_owned(), header: header(file)?, read: Instant::now() })
    }

    /// The value of `Authorization` now.
    pub(crate) fn header(&mut self, now: Instant) -> HeaderValue {
        if now.saturating_duration_since(self.read) >= FRESH {
            self.read = now;
            match header(&self.file) {
                Ok(header) => self.header = header,
                Err(problem) => {
                    let file = self.file.display();
                    tracing::debug!(%file, %problem, "the token is not read again; the last one is used");
                }
            }
        }
        self.header.clone()
    }
}

fn header(file: &Path) -> Result<HeaderValue, KubeconfigProblem> {
    let text = read_text(file, MAX_TOKEN)
        .map_err(|cause| KubeconfigProblem::File { file: file.to_owned(), cause })?;
    let unusable = || KubeconfigProblem::Content {
        file: file.to_owned(),
        problem: Box::new(KubeconfigProblem::NoToken),
    };
    let token = text.trim();
    if !is_token(token) {
        return Err(unusable());
    }
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| unusable())?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_again_every_minute_without_the_space_around_it_and_kept_when_it_cannot_be() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        write("one\n");
        let mut token = Token::read(&file).unwrap();
        let mut now = Instant::now();
        assert_eq!(token.header(now), "Bearer one");
        assert!(token.header(now).is_sensitive());
        write(" two \r\n");
        assert_eq!(token.header(now), "Bearer one");
        let contents =
            [(" two \r\n", "Bearer two"), ("", "Bearer two"), ("a b", "Bearer two"), ("3", "Bearer 3")];
        for (content, expected) in contents {
            write(content);
            now += FRESH * 2;
            assert_eq!(token.header(now), expected, "{content:?}");
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(token.header(now + FRESH * 2), "Bearer 3");
        std::fs::create_dir(&file).unwrap();
        assert_eq!(token.header(now + FRESH * 4), "Bearer 3", "a folder in its place");
        assert!(Token::read(&file).is_err());
        std::fs::remove_dir(&file).unwrap();
        // As kubelet does it: the file is a link, and where it leads is exchanged.
        std::fs::write(folder.path().join("next"), "4").unwrap();
        std::os::unix::fs::symlink(folder.path().join("next"), &file).unwrap();
        assert_eq!(token.header(now + FRESH * 6), "Bearer 4");
        std::fs::remove_file(&file).unwrap();
        assert!(Token::read(&file).unwrap_err().to_string().contains("token"));
    }
}
