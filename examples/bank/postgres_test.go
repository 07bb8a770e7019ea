//go:build postgres && unix

package main

import (
	"context"
	"testing"

	"github.com/cantuslog/cantus/internal/postgres"
)

func init() {
	databases["postgresql"] = func(t *testing.T) database {
		s := postgres.Start(t)
		return database{location: s.Database(t), restart: func(ctx context.Context) error {
			s.Kill()
			return s.Start(ctx)
		}}
	}
}
