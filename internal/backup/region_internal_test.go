package backup

import (
	"errors"
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// The store's own error speaks of endpoint rules.
func TestABucketWithoutARegion(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for name, value := range map[string]string{
		"AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
		"AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none, "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
	b, err := openCloud(t.Context(), "s3://nope")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	_, listed := b.List(t.Context(), manifestPrefix)
	_, got := b.Get(t.Context(), "x", 1)
	for _, err := range []error{listed, got, b.Put(t.Context(), "x", nil, true), b.Delete(t.Context(), "x")} {
		if err == nil || !strings.Contains(err.Error(), "set AWS_REGION") {
			t.Error(err)
		}
	}
}

func TestABucketInAnotherRegion(t *testing.T) {
	b := openRefusing(t, "s3", http.StatusMovedPermanently, "PermanentRedirect")
	if _, err := b.Get(t.Context(), "x", 1); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "set AWS_REGION") {
		t.Error(err)
	}
}
