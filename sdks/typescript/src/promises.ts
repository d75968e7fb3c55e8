/** What calls return: promises that also give the raw response, and lists that can be walked to their end. */

/** A decoded answer beside the response it came in (whose body has been read). */
export interface Answer<T> {
  data: T;
  response: Response;
  requestId: string | null;
}

// biome-ignore lint/suspicious/noExplicitAny: as `Promise` declares it, so that this one can stand in for it
type Reason = any;

/** `await` gives the object; `await call.withResponse()` gives it together with status and headers. */
export class ApiPromise<T> implements Promise<T> {
  readonly [Symbol.toStringTag] = "ApiPromise";
  readonly #answer: Promise<Answer<T>>;

  constructor(answer: Promise<Answer<T>>) {
    this.#answer = answer;
  }

  withResponse(): Promise<Answer<T>> {
    return this.#answer;
  }

  // biome-ignore lint/suspicious/noThenProperty: being awaited is what this class is for
  then<A = T, B = never>(
    fulfilled?: ((data: T) => A | PromiseLike<A>) | null,
    rejected?: ((reason: Reason) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.#answer.then(({ data }) => data).then(fulfilled, rejected);
  }

  catch<B = never>(rejected?: ((reason: Reason) => B | PromiseLike<B>) | null): Promise<T | B> {
    return this.then(undefined, rejected);
  }

  finally(settled?: (() => void) | null): Promise<T> {
    return this.then().finally(settled);
  }
}

/** One page of a list, newest first. `for await (const item of page)` goes on through all later pages. */
export class Page<T> implements AsyncIterable<T> {
  readonly data!: T[];
  readonly has_more!: boolean;
  readonly next_cursor!: string | null;
  readonly #fetchPage: (cursor: string) => Promise<Page<T>>;

  constructor(body: Pick<Page<T>, "data" | "has_more" | "next_cursor">, fetchPage: (cursor: string) => Promise<Page<T>>) {
    Object.assign(this, body);
    this.#fetchPage = fetchPage;
  }

  /** The page after this one, or null after the last. */
  async nextPage(): Promise<Page<T> | null> {
    return this.has_more && this.next_cursor ? this.#fetchPage(this.next_cursor) : null;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    for (let page: Page<T> | null = this; page; page = await page.nextPage()) yield* page.data;
  }
}

/** `await` gives the first page; `for await` walks every item, fetching pages as it goes. */
export class PagePromise<T> extends ApiPromise<Page<T>> implements AsyncIterable<T> {
  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    yield* await this;
  }
}
