//go:build s3

package backup

import (
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
)

// TestS3 checks a bucket of a real S3 server, whose conditional writes decide
// between two processes.
func TestS3(t *testing.T) {
	s := testkit.StartS3(t)
	for _, v := range s.Env {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	b, err := openCloud(t.Context(), s.URL("prefix"))
	if err != nil {
		t.Fatal(err)
	}
	CheckBucket(t, b)
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}
