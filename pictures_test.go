package cantus_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each picture is drawn from the source beside it, and a document shows it.
func TestPicturesAreDrawnFromTheirSources(t *testing.T) {
	sources, err := filepath.Glob("docs/pictures/*.d2")
	if err != nil || len(sources) == 0 {
		t.Fatal("no sources of pictures", err)
	}
	var documents bytes.Buffer
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			documents.Write(text)
		}
	}
	for _, source := range sources {
		text, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(source, ".d2") + ".svg"
		picture, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
		}
		if sum := fmt.Sprintf("%x", sha256.Sum256(text)); !bytes.Contains(picture, []byte(sum)) {
			t.Errorf("%s is not drawn from %s as it is now: run make pictures", name, source)
		}
		if !bytes.Contains(documents.Bytes(), []byte("pictures/"+filepath.Base(name))) {
			t.Errorf("no document shows %s", name)
		}
	}
}
