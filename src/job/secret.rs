//! A secret is a value that cannot be printed, and comes from where the job file says.
//!
//! The only file besides `src/cli` that reads the environment.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use dhis2::Secret;

/// Bytes a secret may have; a longer one is a file that was meant for something else.
const SECRET_BYTES_MAX: u64 = 64 * 1024;
/// Timeout of a command that prints a secret; a person may have to type a passphrase for it.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// Interval for checking whether a command that has closed its output has ended.
const COMMAND_POLL: Duration = Duration::from_millis(20);

/// Source of a secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SecretSource {
    /// The job file itself, which no other user can read.
    Inline(Secret),
    /// An environment variable.
    Env(String),
    /// A file, relative to the working directory; one trailing line end is not part of it.
    File(PathBuf),
    /// A systemd credential: `$CREDENTIALS_DIRECTORY/NAME`.
    Credential(String),
    /// Stdout of a command; one trailing line end is not part of it.
    Command(Vec<String>),
}

/// A secret, and what a person should know about how it is kept.
#[derive(Debug)]
pub struct Resolved {
    /// The secret.
    pub secret: Secret,
    /// A warning if it is kept unsafely.
    pub warning: Option<String>,
}

/// Why there is no secret (exit 78). Says the key, where it was looked for and what to do; never the secret.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct SecretError {
    /// The key of the job file or the flag: `source.password`.
    pub key: String,
    /// The error.
    pub problem: String,
    /// The next step.
    pub next: String,
}

/// Reads an environment variable; injected in tests.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The environment of this process.
pub fn process_environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

impl SecretSource {
    /// Fetches the secret. Blocks: called before any arbiter runs.
    ///
    /// - `key`: how errors name it: `source.password`.
    ///
    /// # Errors
    /// When there is none, it is empty, it is no text, or it has a line end inside.
    pub fn resolve(&self, key: &str, environment: Environment<'_>) -> Result<Resolved, SecretError> {
        let error = |problem: String, next: String| SecretError { key: key.to_owned(), problem, next };
        let mut warning = None;
        let bytes = match self {
            SecretSource::Inline(secret) => secret.expose().as_bytes().to_vec(),
            SecretSource::Env(name) => environment(name)
                .ok_or_else(|| {
                    error(
                        format!("the environment variable `{name}` is not set"),
                        format!("set it for this command: read -rs {name}; export {name}"),
                    )
                })?
                .into_encoded_bytes(),
            SecretSource::File(path) => {
                let (bytes, open_to_others) = read_file(path).map_err(|source| {
                    error(
                        format!("cannot read `{}`: {source}", path.display()),
                        "make the file readable for the user that runs the harvest only (0600)".to_owned(),
                    )
                })?;
                if open_to_others {
                    warning = Some(format!(
                        "{key}: others on this machine can read `{path}`; close it with: chmod 600 {path}",
                        path = path.display()
                    ));
                }
                cut_line_end(bytes)
            }
            SecretSource::Credential(name) => {
                let folder = environment("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                    error(
                        "the environment variable `CREDENTIALS_DIRECTORY` is not set".to_owned(),
                        format!(
                            "run it as a systemd unit with LoadCredential={name}:/path, or use {{ env = … }} by hand"
                        ),
                    )
                })?;
                let path = Path::new(&folder).join(name);
                let (bytes, _) = read_file(&path).map_err(|source| {
                    error(
                        format!("cannot read the credential `{name}`: {source}"),
                        format!("add LoadCredential={name}:/path to the unit"),
                    )
                })?;
                cut_line_end(bytes)
            }
            SecretSource::Command(words) => {
                let program = words.first().map_or("", String::as_str);
                let next = format!("run `{program}` by hand and see what it says");
                let bytes = run(words, COMMAND_LIMIT)
                    .map_err(|problem| error(format!("the command `{program}` {problem}"), next))?;
                cut_line_end(bytes)
            }
        };
        let next = || "see that it holds exactly the secret".to_owned();
        if bytes.is_empty() {
            return Err(error("the secret is empty".to_owned(), next()));
        }
        let text = String::from_utf8(bytes).map_err(|_| error("the secret is not UTF-8 text".to_owned(), next()))?;
        if text.chars().any(char::is_control) {
            return Err(error("the secret has a line end or another control character in it".to_owned(), next()));
        }
        Ok(Resolved { secret: Secret::new(text), warning })
    }

    /// Description for people: `$DHIS2_PASSWORD`.
    pub fn describe(&self) -> String {
        match self {
            SecretSource::Inline(_) => "the job file".to_owned(),
            SecretSource::Env(name) => format!("${name}"),
            SecretSource::File(path) => format!("the file {}", path.display()),
            SecretSource::Credential(name) => format!("the credential {name}"),
            SecretSource::Command(words) => format!("the command {}", words.first().map_or("", String::as_str)),
        }
    }
}

/// Reads a small file, and says whether others can read it too.
fn read_file(path: &Path) -> io::Result<(Vec<u8>, bool)> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {SECRET_BYTES_MAX} bytes")));
    }
    Ok((bytes, mode & 0o077 != 0))
}

/// Editors and `echo` end a file with a line end that is not meant.
fn cut_line_end(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    bytes
}

/// Runs a command and takes what it writes; says what went wrong as a predicate, quoting nothing of its output.
fn run(words: &[String], limit: Duration) -> Result<Vec<u8>, String> {
    let (program, arguments) = words.split_first().ok_or("is empty")?;
    // stdin stays the terminal's, and a passphrase is asked for on /dev/tty. What it says aside may quote the secret.
    let mut child = Command::new(program)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot be started: {error}"))?;
    let (said, hears) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let result = stdout.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes).map(|_| bytes);
            let _ = said.send(result);
        });
    }
    let mut patience = limit;
    let output = hears.recv_timeout(patience);
    // The pipe is closed, or the time is over; a command that has closed it may still be running.
    let status: Option<ExitStatus> = loop {
        match child.try_wait().map_err(|error| format!("cannot be waited for: {error}"))? {
            Some(status) => break Some(status),
            None if output.is_err() || patience.is_zero() => break None,
            None => {
                thread::park_timeout(COMMAND_POLL);
                patience = patience.saturating_sub(COMMAND_POLL);
            }
        }
    };
    let Some(status) = status else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("did not end within {} s", limit.as_secs()));
    };
    if !status.success() {
        return Err(match status.code() {
            Some(code) => format!("ended with {code}"),
            None => "was killed by a signal".to_owned(),
        });
    }
    let bytes = output.map_err(|_| "did not close its output".to_owned())?;
    let bytes = bytes.map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(format!("writes more than {SECRET_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn resolve(source: &SecretSource) -> Result<Resolved, SecretError> {
        source.resolve("source.password", &|name| (name == "PW").then(|| OsString::from("canary")))
    }

    fn command(words: &[&str]) -> SecretSource {
        SecretSource::Command(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn a_secret_never_prints() {
        let secret = Secret::new("canary");
        let source = SecretSource::Inline(secret.clone());
        let printed = format!("{secret} {secret:?} {source:?} {:?}", resolve(&source).unwrap());
        assert!(!printed.contains("canary"), "{printed}");
    }

    #[test]
    fn every_source_gives_its_secret_without_the_trailing_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pw");
        fs::write(&path, "canary\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let sources = [
            SecretSource::Env("PW".to_owned()),
            SecretSource::File(path),
            command(&["echo", "canary"]),
            SecretSource::Inline(Secret::new("canary")),
        ];
        for source in sources {
            let resolved = resolve(&source).unwrap();
            assert_eq!(resolved.secret.expose(), "canary", "{}", source.describe());
            assert_eq!(resolved.warning, None);
        }
        let folder_name = folder.path().as_os_str().to_owned();
        let resolved = SecretSource::Credential("pw".to_owned())
            .resolve("source.token", &move |name| (name == "CREDENTIALS_DIRECTORY").then(|| folder_name.clone()))
            .unwrap();
        assert_eq!(resolved.secret.expose(), "canary");
    }

    #[test]
    fn a_file_that_others_can_read_is_warned_about() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pw");
        fs::write(&path, "canary").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let warning = resolve(&SecretSource::File(path)).unwrap().warning.unwrap();
        assert!(warning.contains("chmod 600") && !warning.contains("canary"), "{warning}");
    }

    #[test]
    fn every_failure_names_the_key_and_says_what_to_do_without_quoting() {
        let folder = tempfile::tempdir().unwrap();
        let two_lines = folder.path().join("two");
        fs::write(&two_lines, "canary\ncanary\n").unwrap();
        let table = [
            (SecretSource::Env("NOPE".to_owned()), "source.password: the environment variable `NOPE` is not set"),
            (SecretSource::File("/nonexistent".into()), "cannot read `/nonexistent`"),
            (SecretSource::File(two_lines), "has a line end"),
            (SecretSource::Credential("pw".to_owned()), "`CREDENTIALS_DIRECTORY` is not set"),
            (command(&["sh", "-c", "echo canary; exit 3"]), "the command `sh` ended with 3"),
            (command(&["true"]), "the secret is empty"),
            (command(&["/nonexistent"]), "cannot be started"),
        ];
        for (source, expected) in table {
            let error = resolve(&source).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!error.next.is_empty() && !format!("{error:?}").contains("canary"));
        }
    }

    #[test]
    fn a_command_that_does_not_end_is_killed_at_its_limit() {
        let limit = Duration::from_millis(50);
        for script in ["sleep 30", "exec >&-; sleep 30"] {
            let words = ["sh", "-c", script].map(str::to_owned);
            assert!(run(&words, limit).unwrap_err().contains("did not end"), "{script}");
        }
    }
}
