package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

// cloud is a Bucket of an object store.
type cloud struct {
	bucket *blob.Bucket
	scheme string // of its URL
}

func openCloud(ctx context.Context, url string) (*cloud, error) {
	scheme, _, _ := strings.Cut(url, "://")
	switch known := blob.DefaultURLMux(); {
	case known.ValidBucketScheme(scheme):
	case !known.ValidBucketScheme("s3"):
		return nil, fmt.Errorf("%s: this program was built without object stores (nocloud): write a directory", url)
	default:
		return nil, fmt.Errorf("%s: there is no storage %q: write a directory, or a URL that begins with s3://, gs:// or azblob://", url, scheme)
	}
	b, err := openBucket(ctx, scheme, url)
	if err != nil {
		return nil, explain(scheme, err)
	}
	return &cloud{b, scheme}, nil
}

func (c *cloud) Put(ctx context.Context, name string, data []byte, mustBeNew bool) error {
	err := c.bucket.WriteAll(ctx, name, data, &blob.WriterOptions{ContentType: "application/octet-stream", IfNotExist: mustBeNew})
	if mustBeNew && isConflict(err) {
		return fmt.Errorf("%w: %w", fs.ErrExist, explain(c.scheme, err))
	}
	return explain(c.scheme, err)
}

// isConflict reports whether the error of a conditional write says that there
// is such an object, or that another one is being written.
func isConflict(err error) bool {
	if err == nil {
		return false
	}
	status, _ := answer(err)
	return gcerrors.Code(err) == gcerrors.FailedPrecondition || status == http.StatusPreconditionFailed ||
		status == http.StatusConflict && strings.Contains(err.Error(), "ConditionalRequestConflict")
}

func (c *cloud) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	r, err := c.bucket.NewReader(ctx, name, &blob.ReaderOptions{BeforeRead: beforeRead})
	if isAbsent(err) {
		// The store may say the same of an object whose bucket does not exist.
		if _, _, err := c.bucket.ListPage(ctx, blob.FirstPageToken, 1, nil); err != nil {
			return nil, explain(c.scheme, err)
		}
		return nil, fmt.Errorf("%w: %w", fs.ErrNotExist, explain(c.scheme, err))
	}
	if err != nil {
		return nil, explain(c.scheme, err)
	}
	defer r.Close()
	b, err := readLimited(r, limit)
	if errors.Is(err, errTooLarge) {
		return b, err
	}
	return b, explain(c.scheme, err)
}

// isAbsent reports whether the store answered that there is no such object, or
// bucket. The library says "not found" for more: for what Google does not
// permit, and for a host of Azure whose address is not found.
func isAbsent(err error) bool {
	if gcerrors.Code(err) != gcerrors.NotFound {
		return false
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return false
	}
	status, _ := answer(err)
	return status == 0 || status == http.StatusNotFound
}

func (c *cloud) List(ctx context.Context, prefix string) (all []Object, err error) {
	for i := c.bucket.List(&blob.ListOptions{Prefix: prefix}); ; {
		o, err := i.Next(ctx)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, explain(c.scheme, err)
		}
		all = append(all, Object{o.Key, o.Size, o.ModTime})
	}
}

func (c *cloud) Delete(ctx context.Context, name string) error {
	if err := c.bucket.Delete(ctx, name); !isAbsent(err) {
		return explain(c.scheme, err)
	}
	return nil
}

func (c *cloud) Close() error { return c.bucket.Close() }
