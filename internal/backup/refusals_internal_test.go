package backup

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"gocloud.dev/blob/memblob"
)

// answers are how the stores answer what they refuse: the body, and the name of
// the header for the code that is in it.
var answers = map[string]struct {
	url    string
	body   string // with verbs for the code and a text
	header string
}{
	"s3":     {"s3://bucket?endpoint=http://%s&use_path_style=true", "<?xml version=\"1.0\"?>\n<Error>\n<Code>%s</Code>\n<Message>%s</Message>\n</Error>", ""},
	"gs":     {"gs://bucket", `{"error":{"code":0,"message":"%[2]s","errors":[{"reason":"%[1]s","message":"%[2]s"}]}}`, ""},
	"azblob": {"azblob://bucket?domain=%s&protocol=http&localemu=true", "<?xml version=\"1.0\"?>\n<Error>\n<Code>%s</Code>\n<Message>%s</Message>\n</Error>", "X-Ms-Error-Code"},
}

// openRefusing returns a bucket of a store that gives one answer to everything.
func openRefusing(t *testing.T, scheme string, status int, code string) *cloud {
	t.Helper()
	a := answers[scheme]
	return openServed(t, a.url, func(w http.ResponseWriter, _ *http.Request) {
		if a.header != "" {
			w.Header().Set(a.header, code)
		}
		w.WriteHeader(status)
		fmt.Fprintf(w, a.body, code, "because I say so")
	})
}

// openServed returns the bucket of a URL, with a verb for the server's address.
func openServed(t *testing.T, url string, serve http.HandlerFunc) *cloud {
	t.Helper()
	server := httptest.NewServer(serve)
	t.Cleanup(server.Close)
	address := server.Listener.Addr().String()
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
		"STORAGE_EMULATOR_HOST": address,
		"AZURE_STORAGE_ACCOUNT": "cantus", "AZURE_STORAGE_KEY": base64.StdEncoding.EncodeToString([]byte("secret")),
	} {
		t.Setenv(name, value)
	}
	if strings.Contains(url, "%s") {
		url = fmt.Sprintf(url, address)
	}
	b, err := openCloud(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// What a store does not permit is not missing, is not deleted, and is not there
// already. The error says what to check, on one line.
func TestForbidden(t *testing.T) {
	for scheme, code := range map[string]string{"s3": "AccessDenied", "gs": "forbidden", "azblob": "AuthorizationPermissionMismatch"} {
		b := openRefusing(t, scheme, http.StatusForbidden, code)
		_, listed := b.List(t.Context(), manifestPrefix)
		_, got := b.Get(t.Context(), "x", 1)
		deleted := b.Delete(t.Context(), "x")
		put := b.Put(t.Context(), "x", nil, true)
		for what, err := range map[string]error{"list": listed, "get": got, "delete": deleted, "put": put} {
			if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) || strings.Contains(err.Error(), "\n") ||
				!strings.Contains(err.Error(), "403") || !strings.Contains(err.Error(), "check the credentials ("+credentials[scheme]+")") {
				t.Errorf("%s, %s: %v", scheme, what, err)
			}
		}
	}
}

// Google may permit a list, and not its objects.
func TestForbiddenObject(t *testing.T) {
	b := openServed(t, "gs://bucket", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/storage/v1/b/bucket/o" {
			fmt.Fprintf(w, `{"items":[{"name":%q}]}`, manifestName(1))
			return
		}
		w.WriteHeader(http.StatusForbidden)
	})
	r := New(b, Options{})
	if m, err := r.Newest(t.Context()); err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "check the credentials") {
		t.Errorf("%v, %v", m, err)
	}
}

// An object in a bucket that does not exist is not missing either: there is no
// place for it.
func TestNoBucket(t *testing.T) {
	for scheme, code := range map[string]string{"s3": "NoSuchBucket", "gs": "notFound", "azblob": "ContainerNotFound"} {
		b := openRefusing(t, scheme, http.StatusNotFound, code)
		_, listed := b.List(t.Context(), manifestPrefix)
		_, got := b.Get(t.Context(), "x", 1)
		for what, err := range map[string]error{"list": listed, "get": got} {
			if err == nil || errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "create the bucket") {
				t.Errorf("%s, %s: %v", scheme, what, err)
			}
		}
	}
}

// A host whose address is not found says nothing about objects.
func TestAHostThatIsNotFound(t *testing.T) {
	b := memblob.OpenBucket(nil)
	defer b.Close()
	_, err := b.ReadAll(t.Context(), "x")
	if !isAbsent(err) {
		t.Errorf("not absent: %v", err)
	}
	if err := errors.Join(err, &net.DNSError{Err: "no such host", Name: "cantus.blob.core.windows.net", IsNotFound: true}); isAbsent(err) {
		t.Errorf("absent: %v", err)
	}
}

// S3 may answer that another one is being written: a run begins again then.
func TestAConflictInS3(t *testing.T) {
	b := openRefusing(t, "s3", http.StatusConflict, "ConditionalRequestConflict")
	if err := b.Put(t.Context(), "x", nil, true); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if err := b.Put(t.Context(), "x", nil, false); err == nil || errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
}

// Google's library by itself does not send a write again that has no condition.
func TestGoogleWritesAreTriedAgain(t *testing.T) {
	var tries atomic.Int32
	b := openServed(t, "gs://bucket", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil || tries.Add(1) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"name":"x","bucket":"bucket","generation":"1","size":"1"}`)
	})
	if err := b.Put(t.Context(), "x", []byte("x"), false); err != nil || tries.Load() != 2 {
		t.Errorf("%d tries, %v", tries.Load(), err)
	}
}

// Credentials of Google are looked for again until they are found.
func TestGoogleWithoutCredentials(t *testing.T) {
	t.Setenv("STORAGE_EMULATOR_HOST", "")
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", filepath.Join(t.TempDir(), "none.json"))
	b, err := openCloud(t.Context(), "gs://bucket?prefix=x/")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.List(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "none.json: no such file or directory: check the credentials (GOOGLE") {
		t.Error(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
	}))
	defer server.Close()
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", writeServiceAccount(t, server.URL))
	if _, err := b.List(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "invalid_grant") || !strings.Contains(err.Error(), "check the credentials (GOOGLE") {
		t.Error(err)
	}
}

// The text of an error is one line, and has no signature.
func TestErrorOfAStore(t *testing.T) {
	err := explain("azblob", fmt.Errorf("blob (code=Unknown): Get \"https://a.blob.core.windows.net/b?comp=list&sig=secret\":\n\t%s\nno answer", strings.Repeat("-", 80)))
	if want := `Get "https://a.blob.core.windows.net/b": no answer`; err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if explain("s3", nil) != nil || !errors.Is(explain("s3", context.Canceled), context.Canceled) {
		t.Error("errors are not wrapped")
	}
}

// A manifest that stays listed, and is never there, does not keep a run
// waiting.
func TestAManifestThatIsListedAndMissing(t *testing.T) {
	b := &cloud{bucket: memblob.OpenBucket(nil)}
	if err := b.Put(t.Context(), manifestName(7), []byte("x"), true); err != nil {
		t.Fatal(err)
	}
	r := New(withoutGet{b}, Options{})
	defer r.Close()
	if m, err := r.Newest(t.Context()); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "0000000000000007.json is listed, but missing") {
		t.Errorf("%v, %v", m, err)
	}
}

// withoutGet is a bucket that lists objects which it can't return.
type withoutGet struct{ Bucket }

func (withoutGet) Get(context.Context, string, int64) ([]byte, error) { return nil, fs.ErrNotExist }

// writeServiceAccount writes the key of an account whose tokens are at a URL.
func writeServiceAccount(t *testing.T, tokens string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "cantus@example.com", "token_uri": tokens,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	path := filepath.Join(t.TempDir(), "account.json")
	if err = errors.Join(err, os.WriteFile(path, account, 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}
