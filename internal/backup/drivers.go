//go:build !nocloud

package backup

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"

	"cloud.google.com/go/storage"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/azureblob" // azblob://
	"gocloud.dev/blob/gcsblob"     // gs://
	_ "gocloud.dev/blob/s3blob"    // s3://
	"gocloud.dev/gcp"
	"golang.org/x/oauth2"
	oauthgoogle "golang.org/x/oauth2/google"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/option"
)

// openBucket opens the bucket of a URL.
func openBucket(ctx context.Context, scheme, where string) (*blob.Bucket, error) {
	if scheme != gcsblob.Scheme {
		return blob.OpenBucket(ctx, where)
	}
	var stores blob.URLMux
	stores.RegisterBucket(scheme, google{})
	b, err := stores.OpenBucket(ctx, where)
	if err != nil {
		return nil, err
	}
	var client *storage.Client
	if b.As(&client) {
		// By default a request is tried for ever, and an object that may be
		// there is not written again. Ours may be: each write of a name has the
		// same bytes, or has to be the first.
		client.SetRetry(storage.WithMaxAttempts(googleAttempts), storage.WithPolicy(storage.RetryAlways))
	}
	return b, nil
}

// googleAttempts is how often a request is sent before it fails. With the
// pauses between, that takes some seconds, as with the other stores.
const googleAttempts = 5

// google opens buckets of Google Cloud Storage. The library's own opener prints
// a warning on standard output if there are no credentials, and never looks for
// them again.
type google struct{}

func (google) OpenBucketURL(ctx context.Context, u *url.URL) (*blob.Bucket, error) {
	if emulator := os.Getenv("STORAGE_EMULATOR_HOST"); strings.Contains(emulator, "://") {
		return nil, fmt.Errorf("STORAGE_EMULATOR_HOST is %q: write HOST:PORT, which is spoken to by HTTP", emulator)
	}
	var opener gcsblob.URLOpener
	universe := u.Query().Get("universe_domain")
	if universe != "" {
		opener.Options.ClientOptions = append(opener.Options.ClientOptions, option.WithUniverseDomain(universe))
	}
	opener.TokenSource = oauth2.ReuseTokenSource(nil, &googleTokens{universe: universe})
	var err error
	if opener.Client, err = gcp.NewHTTPClient(gcp.DefaultTransport(), opener.TokenSource); err != nil {
		return nil, err
	}
	return opener.OpenBucketURL(ctx, u)
}

// googleTokens returns tokens for the default credentials, which it looks for
// until it has found them.
type googleTokens struct {
	universe string

	mu    sync.Mutex
	found oauth2.TokenSource
}

func (t *googleTokens) Token() (*oauth2.Token, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.found == nil {
		c, err := gcp.DefaultCredentialsWithParams(context.Background(), oauthgoogle.CredentialsParams{UniverseDomain: t.universe})
		if err != nil {
			return nil, err
		}
		t.found = c.TokenSource
	}
	return t.found.Token()
}

// beforeRead keeps the library of S3 from warning on standard error at each
// object that was written in parts. Segments have hashes of their own.
func beforeRead(as func(any) bool) error {
	var options *[]func(*s3.Options)
	if as(&options) {
		*options = append(*options, func(o *s3.Options) { o.DisableLogOutputChecksumValidationSkipped = true })
	}
	return nil
}

// answer returns the HTTP status of a store's answer, 0 if the error is none,
// and a text in place of the error's, or "".
func answer(err error) (status int, text string) {
	if e, ok := errors.AsType[*googleapi.Error](err); ok {
		return e.Code, ""
	}
	if e, ok := errors.AsType[*azcore.ResponseError](err); ok { // its text is a page
		if r := e.RawResponse; r != nil && r.Request != nil && r.Request.URL != nil {
			u := r.Request.URL
			text = fmt.Sprintf("%s %s://%s%s: %s (%s)", r.Request.Method, u.Scheme, u.Host, u.Path, r.Status, e.ErrorCode)
		}
		return e.StatusCode, text
	}
	var e interface{ HTTPStatusCode() int }
	if errors.As(err, &e) { // S3
		return e.HTTPStatusCode(), ""
	}
	return 0, ""
}
