package subjects_test

import (
	"testing"

	"github.com/cantuslog/cantus/subjects"
)

func TestCheckVersion(t *testing.T) {
	for version, good := range map[string]bool{
		"0.1.0": true, "1.2.3": true, "10.20.30": true, "0.1.0-dev": true, "0.1.0-dev+0123abc.modified": true,
		"1.2.3-rc.1": true, "1.2.3+007": true, "1.2.3-0a": true,
		"": false, "devel": false, "v1.2.3": false, "1.2": false, "1.2.3.4": false, "01.2.3": false, "1.2.3-": false,
		"1.2.3-01": false, "1.2.3+": false, "1.2.3 ": false, "1.2.3\n": false, "1.2.3-a..b": false, "(devel)": false,
	} {
		if err := subjects.CheckVersion(version); (err == nil) != good {
			t.Errorf("%q: %v", version, err)
		}
	}
}
