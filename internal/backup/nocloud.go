//go:build nocloud

package backup

import (
	"context"

	"gocloud.dev/blob"
)

func openBucket(ctx context.Context, _, url string) (*blob.Bucket, error) {
	return blob.OpenBucket(ctx, url)
}

func beforeRead(func(any) bool) error { return nil }

func answer(error) (status int, text string) { return 0, "" }
