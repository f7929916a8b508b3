//! Where runs keep their state: what was asked for, what systemd gives, what the desktop's rules say.

use std::path::{Path, PathBuf};

use crate::job::secret::Environment;

/// The folder of all jobs' state.
///
/// # Errors
/// Says why it is not known, where there is neither a flag nor a home.
pub(super) fn resolve(flag: Option<&Path>, environment: Environment<'_>) -> Result<PathBuf, String> {
    let set = |name: &str| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = flag {
        return Ok(folder.to_owned());
    }
    if let Some(folders) = set("STATE_DIRECTORY") {
        // systemd lists several with colons; the first is the unit's own.
        let first = folders.to_string_lossy().split(':').next().map(PathBuf::from);
        return Ok(first.unwrap_or(folders));
    }
    // The XDG rules say: a relative path is to be ignored.
    if let Some(folder) = set("XDG_STATE_HOME").filter(|folder| folder.is_absolute()) {
        return Ok(folder.join("harvester"));
    }
    set("HOME")
        .map(|home| home.join(".local/state/harvester"))
        .ok_or_else(|| "there is no place for state: neither --state-dir nor $HOME is set".to_owned())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn with(variables: &[(&str, &str)], flag: Option<&str>) -> Result<PathBuf, String> {
        resolve(flag.map(Path::new), &|name| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_first_that_is_given_wins() {
        let all = [("STATE_DIRECTORY", "/var/lib/h:/b"), ("XDG_STATE_HOME", "/x"), ("HOME", "/home/u")];
        assert_eq!(with(&all, Some("here")), Ok("here".into()));
        assert_eq!(with(&all, None), Ok("/var/lib/h".into()));
        assert_eq!(with(&all[1..], None), Ok("/x/harvester".into()));
        assert_eq!(with(&[("XDG_STATE_HOME", "relative"), all[2]], None), Ok("/home/u/.local/state/harvester".into()));
        assert_eq!(with(&[("STATE_DIRECTORY", ""), all[2]], None), Ok("/home/u/.local/state/harvester".into()));
        assert!(with(&[], None).unwrap_err().contains("--state-dir"));
    }
}
