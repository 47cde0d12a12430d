ARG GO_IMAGE=golang:1.26
FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /out/pgfailproxy ./cmd/pgfailproxy && mkdir /out/state

FROM scratch
COPY --from=build /out/pgfailproxy /usr/local/bin/pgfailproxy
# The record must outlive the container: mount a volume here. A named one takes
# the owner of this folder.
COPY --from=build --chown=65532:65532 /out/state /var/lib/pgfailproxy
USER 65532:65532
WORKDIR /var/lib/pgfailproxy
EXPOSE 6432 8008
ENTRYPOINT ["/usr/local/bin/pgfailproxy"]
CMD ["run"]
