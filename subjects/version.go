package subjects

import (
	"fmt"
	"regexp"
)

// semver is the grammar of https://semver.org, version 2.0.0.
var semver = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)` +
	`(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?` +
	`(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$`)

// CheckVersion returns nil if version is a semantic version without a leading
// "v". Clients of the NATS service protocol ignore services with any other
// version.
func CheckVersion(version string) error {
	if !semver.MatchString(version) {
		return fmt.Errorf("version %q is not a semantic version, such as 1.2.3 or 1.2.3-dev", clip(version))
	}
	return nil
}
