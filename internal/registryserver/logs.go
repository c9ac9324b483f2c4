package registryserver

import (
	"context"
	"io"
	"log/slog"
	"reflect"

	"github.com/sirupsen/logrus"
)

// distribution logs through logrus, to the process's stderr unless the context carries another
// logger, under a key that its internal package keeps to itself. logContext answers to the key's
// name: the only way that changes nothing for the rest of the process. Should the name change, the
// log goes to stderr again, and TestLogger says so.

const loggerKey = "dcontext.loggerKey"

type logContext struct {
	context.Context
	entry *logrus.Entry
}

func withLogger(ctx context.Context, log *slog.Logger) context.Context {
	logger := &logrus.Logger{
		Out: io.Discard, Formatter: &logrus.JSONFormatter{}, Hooks: logrus.LevelHooks{},
		Level: logrus.WarnLevel, ExitFunc: func(int) {},
	}
	logger.AddHook(slogHook{log})
	return logContext{ctx, logrus.NewEntry(logger)}
}

// Value implements context.Context.
func (c logContext) Value(key any) any {
	if t := reflect.TypeOf(key); t != nil && t.Kind() == reflect.Struct && t.String() == loggerKey {
		return c.entry
	}
	return c.Context.Value(key)
}

// slogHook hands entries on. All become debug lines: distribution logs every 404 as an error.
type slogHook struct{ log *slog.Logger }

// Levels implements logrus.Hook.
func (slogHook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire implements logrus.Hook.
func (h slogHook) Fire(entry *logrus.Entry) error {
	ctx := entry.Context
	if ctx == nil {
		ctx = context.Background()
	}
	args := []any{slog.String("distribution", entry.Level.String())}
	for _, key := range []string{"http.request.method", "http.request.uri", "err.code", "err.detail", "http.response.status"} {
		if value, ok := entry.Data[key]; ok {
			args = append(args, slog.Any(key, value))
		}
	}
	h.log.DebugContext(ctx, entry.Message, args...)
	return nil
}
