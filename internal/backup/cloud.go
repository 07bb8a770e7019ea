package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"strings"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

// cloud is a Bucket of an object store.
type cloud struct{ bucket *blob.Bucket }

func openCloud(ctx context.Context, url string) (*cloud, error) {
	scheme, _, _ := strings.Cut(url, "://")
	switch known := blob.DefaultURLMux(); {
	case known.ValidBucketScheme(scheme):
	case !known.ValidBucketScheme("s3"):
		return nil, fmt.Errorf("%s: this program was built without object stores (nocloud): write a directory", url)
	default:
		return nil, fmt.Errorf("%s: there is no storage %q: write a directory, or a URL that begins with s3://, gs:// or azblob://", url, scheme)
	}
	b, err := blob.OpenBucket(ctx, url)
	if err != nil {
		return nil, err
	}
	return &cloud{b}, nil
}

// explain adds to the error of a store what would be right.
func explain(err error) error {
	if err != nil && invalidRegion.MatchString(err.Error()) {
		return fmt.Errorf("%w: set AWS_REGION to the bucket's region, or add ?region=REGION to the URL", err)
	}
	return err
}

var invalidRegion = regexp.MustCompile(`(?i)(invalid|missing|not find) (a )?region`)

func (c *cloud) Put(ctx context.Context, name string, data []byte, mustBeNew bool) error {
	err := c.bucket.WriteAll(ctx, name, data, &blob.WriterOptions{ContentType: "application/octet-stream", IfNotExist: mustBeNew})
	if mustBeNew && gcerrors.Code(err) == gcerrors.FailedPrecondition {
		return fmt.Errorf("%w: %w", fs.ErrExist, err)
	}
	return explain(err)
}

func (c *cloud) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	r, err := c.bucket.NewReader(ctx, name, nil)
	if gcerrors.Code(err) == gcerrors.NotFound {
		return nil, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	if err != nil {
		return nil, explain(err)
	}
	defer r.Close()
	return readLimited(r, limit)
}

func (c *cloud) List(ctx context.Context, prefix string) (all []Object, err error) {
	for i := c.bucket.List(&blob.ListOptions{Prefix: prefix}); ; {
		o, err := i.Next(ctx)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, explain(err)
		}
		all = append(all, Object{o.Key, o.Size, o.ModTime})
	}
}

func (c *cloud) Delete(ctx context.Context, name string) error {
	if err := c.bucket.Delete(ctx, name); gcerrors.Code(err) != gcerrors.NotFound {
		return explain(err)
	}
	return nil
}

func (c *cloud) Close() error { return c.bucket.Close() }
